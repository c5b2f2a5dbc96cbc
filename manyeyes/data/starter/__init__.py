"""The starter data: about ten thousand samples made offline, in seconds, from real sources."""

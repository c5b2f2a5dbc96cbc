"""What builds the images: lists of packages and their hashes."""

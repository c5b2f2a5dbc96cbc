"""The data contract: rules, measured and judged; what breaks them is quarantined or refused."""

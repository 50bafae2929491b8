"""The HTTP routes that Label Studio calls."""

"""The method families: one module each, one card (TOML) per method id."""

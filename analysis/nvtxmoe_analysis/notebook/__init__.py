"""Results that show themselves in a notebook: findings, charts by name, the report inline. Nothing needs a network."""

"""Training methods: each file one loss, found by itself."""

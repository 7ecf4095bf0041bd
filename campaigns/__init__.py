"""Long-running checks that try to make the package lie, lose work, or be tricked. See campaigns/README.md."""

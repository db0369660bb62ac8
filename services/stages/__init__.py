"""What holds model versions and advances rows through them."""

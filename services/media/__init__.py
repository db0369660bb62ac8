"""Pictures and sounds as bytes, and what is kept of them."""

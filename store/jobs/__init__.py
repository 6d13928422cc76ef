"""Jobs: their states, leases, events and what becomes of them."""

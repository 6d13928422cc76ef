"""What is kept: tables, states, repositories, leases, blobs. No HTTP, no torch."""

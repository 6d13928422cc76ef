"""Contents: uploads and model folders."""

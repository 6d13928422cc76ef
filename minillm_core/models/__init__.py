"""Models: where they come from, what their families differ in, and how students are made of them."""

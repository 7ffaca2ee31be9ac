"""How the bundled weights are made: procedural pictures, degradations, and one module per network."""

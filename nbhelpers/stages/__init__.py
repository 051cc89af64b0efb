"""One folder a notebook; stages never import each other."""

"""The data manifests of the package, one JSON file a data set (README.md describes the format)."""

"""The release, where packaging and the user agent find it."""

VERSION = "0.1.0"

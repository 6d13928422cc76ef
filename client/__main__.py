"""`python -m client` is `minillm`."""

from client.cli import app

if __name__ == "__main__":
    app(prog_name="minillm")

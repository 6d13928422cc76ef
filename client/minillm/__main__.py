"""`python -m minillm` is `minillm`."""

from minillm.cli import app

if __name__ == "__main__":
    app(prog_name="minillm")

"""`python -m app` is `kontext-gateway`.

The commands are imported only when one is run: image workers are spawned, import this module again, and must stay
small.
"""


def main() -> None:
    """Entry point of both."""
    from app.cli import main as run

    run()


if __name__ == "__main__":
    main()

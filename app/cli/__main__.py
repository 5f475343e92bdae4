"""The command `penstock`, which is `python -m app.cli`: Ctrl-C ends it quietly, while it imports, too."""


def main() -> None:
    """The command's entry: `app.cli.main.main`, and exit status 130 after Ctrl-C."""
    try:
        from app.cli.main import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

"""List the recipes with the first line of what they say of themselves."""

from jobs.cli import run
from r2kg.recipes import recipes


def main() -> None:
    """Print every recipe's name and summary."""
    for name, function in recipes().items():
        print(f"{name:32} {(function.__doc__ or '').strip().splitlines()[0]}")


if __name__ == "__main__":
    run(main)

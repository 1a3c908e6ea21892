"""`python -m miniature.ablate [ARM ...] [--seeds 0 1] [--minutes M]`: what each dial of the method is worth.

Trains the arms of miniature/ablate/arms.py with the same steps, evaluates them on the same cases, appends a row for
each to RESULTS, and writes PAGE from all rows. Called again, it continues; rows that are there are not run again. One
arm with one seed takes about 15 minutes of two CPU cores.
"""

from __future__ import annotations

from pathlib import Path

from miniature.ablate.lab import Lab, read_rows
from miniature.ablate.page import write_page
from miniature.arguments import Parser


def main() -> None:
    parser = Parser(prog="python -m miniature.ablate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("arms", nargs="*", metavar="ARM", help="of miniature/ablate/arms.py; all by default")
    parser.add_argument("--output", type=Path, default=Path("lab"), help="work folder")
    parser.add_argument("--results", type=Path, default=Path("docs/ablations.jsonl"), help="file of the rows")
    parser.add_argument("--page", type=Path, default=Path("docs/ablations.md"), help="the page that is written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--pairs", type=int, default=64, help="cases that are edited")
    parser.add_argument("--minutes", type=float, help="begin no arm after this time")
    arguments = parser.parse_args()
    with parser.command():
        lab = Lab(arguments.output, arguments.results, arguments.pairs)
        lab.run(arguments.arms, arguments.seeds, arguments.minutes)
        write_page(arguments.page, read_rows(arguments.results))


if __name__ == "__main__":
    main()

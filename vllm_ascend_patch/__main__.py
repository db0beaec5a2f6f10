# SPDX-License-Identifier: Apache-2.0
"""The command line."""


def main() -> None:
    raise SystemExit("not built yet")


if __name__ == "__main__":
    main()

"""The command line: `jaxdyn reproduce | simulate | fit | generate | analyze`."""

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs one command line, `sys.argv` by default, and exits with its status."""
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        from . import __version__

        print(f"jaxdyn {__version__}")
        sys.exit(0)
    import tyro

    from ._cli.analyze import Analyze
    from ._cli.common import UsageError
    from ._cli.fit import Fit
    from ._cli.generate import Generate
    from ._cli.reproduce import Reproduce
    from ._cli.simulate import Simulate

    command = tyro.extras.subcommand_cli_from_dict(
        {
            "reproduce": Reproduce,
            "simulate": Simulate,
            "fit": Fit,
            "generate": Generate,
            "analyze": Analyze,
        },
        prog="jaxdyn",
        description=(
            "Dynamics of recurrent networks with skew-symmetric weights. `jaxdyn --version` "
            "prints the version, `jaxdyn COMMAND --help` the options of a command."
        ),
        args=args or ["--help"],
    )
    try:
        sys.exit(command())
    except UsageError as error:
        print(f"jaxdyn {type(command).__name__.lower()}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(f"jaxdyn: interrupted, {str(error) or 'nothing was written'}", file=sys.stderr)
        sys.exit(130)

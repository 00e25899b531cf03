"""The parts of commands: how their usages and help texts are shown, the options that several have, the exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

# The exit code of a command that has failed, or of a check that has found a mistake.
EXIT_FAILED = 1
# The longest time that an option takes. Dates that are later cannot be shown.
_CENTURY_S = 36_500 * 86_400

_Function = Callable[..., Any]
_Decorator = Callable[[_Function], _Function]


def make_option(name: str, text: str, metavar: str | None = None, **attributes: Any) -> _Decorator:
    """Returns an option with a value.

    text: the text of its help.
    metavar: the name of the value in the help; None: the name of the option in capitals.
    attributes: further arguments of `click.option`.
    """
    return click.option(f"--{name}", metavar=metavar or name.upper(), help=text, **attributes)


def make_flag(name: str, text: str, *names: str) -> _Decorator:
    """Returns an option without a value.

    text: the text of its help.
    names: the name of its parameter, if it differs from `name`.
    """
    return click.option(f"--{name}", *names, is_flag=True, help=text)


def make_choice_option(name: str, text: str, *values: str) -> _Decorator:
    """Returns an option that has one of these values."""
    return click.option(f"--{name}", type=click.Choice(values), help=text)


def _make_file_option(name: str, text: str) -> click.Option:
    """Makes an option that names a file. The option may stand before a command, after it, and after its action."""

    def set_file(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.meta[name] = value

    return click.Option(
        [f"--{name}"], metavar="FILE", type=click.Path(), expose_value=False, callback=set_file, help=text
    )


_FILES = (
    _make_file_option("config", "the settings file (default: mnemogate.toml, if there is one)"),
    _make_file_option("db", "the database file (default: mnemogate.db)"),
)


class _Command(click.Command):
    """A command that shows its usage alike in help texts and in errors."""

    def __init__(self, *args: Any, reads_settings: bool = True, **kwargs: Any) -> None:
        """Makes the command.

        args, kwargs: the arguments of `click.Command`.
        reads_settings: True if the command takes the options that name the settings file and the database.
        """
        super().__init__(*args, **kwargs)
        self.params[:0] = _FILES if reads_settings else ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click's parser of options names no context
            raise

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        pieces = ["[-h]", *self.collect_usage_pieces(ctx)]
        formatter.write_usage(ctx.command_path, " ".join(pieces), prefix="usage: ")

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "show this help and exit"
        return option

    def get_short_help_str(self, limit: int = 45) -> str:
        """Returns the whole help: a list of commands wraps the help text, and does not cut it."""
        return self.help or ""


class Group(_Command, click.Group):
    """Commands, in the order in which they were added."""

    command_class = _Command
    group_class = type  # click's sign for groups of this class

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        options = click.Command.collect_usage_pieces(self, ctx)
        names = f"{{{','.join(self.commands)}}} ..." if ctx.parent is not None else "command ..."
        return [*options, f"[{names}]" if self.invoke_without_command else names]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.invoke_without_command and not ctx.resilient_parsing and self._leaves_out_action(ctx, args):
            args = ["list", *args]
        if not args and not ctx.resilient_parsing:
            ctx.fail(f"say which command: see `{ctx.command_path} -h`")
        return super().parse_args(ctx, args)

    def _leaves_out_action(self, ctx: click.Context, args: Sequence[str]) -> bool:
        """Returns whether the arguments are only options, which belong to the default action."""
        return not args or (
            args[0].startswith("-") and not {*self.commands, *ctx.help_option_names} & {*args}
        )


def add_memory_options(function: _Function) -> _Function:
    """Adds the options that name a memory. An option that is left out has the default that requests have."""
    for name, default, text in reversed(
        (
            ("user", None, "the user (default: the settings' user of requests that name none)"),
            ("project", "default", "the project (default: default)"),
            ("profile", None, "the profile (default: the project's; `forget` of a whole user: all profiles)"),
            ("conversation", None, "a conversation without a user, instead of --user"),
            (
                "agent",
                None,
                "an agent, archive or folder made over the agents API, by its id, instead of --user",
            ),
        )
    ):
        # Names lose blanks at their ends, as names in requests do.
        add_option = make_option(name, text, type=lambda value: value.strip(" \t"), default=default)
        function = add_option(function)
    return function


def read_seconds(text: str) -> int:
    """Returns the seconds of a time such as 90d, 12h, 30m or 10s. Raises: click.BadParameter."""
    unit = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}.get(text[-1:])
    if unit is None or not text[:-1].isdecimal() or len(text) > 9:
        raise click.BadParameter(f"expected a time such as 90d, 12h, 30m or 10s, saw {text!r}")
    seconds = int(text[:-1]) * unit
    if seconds > _CENTURY_S:
        raise click.BadParameter(f"expected a time of at most 36500d, saw {text!r}")
    return seconds


yes_option = make_flag("yes", "do not ask first, though it cannot be undone")
json_option = make_flag("json", "a JSON object for each line", "as_json")
limit_option = click.option(
    "--limit", type=click.IntRange(min=1, max=1_000_000_000), metavar="N", help="at most N lines"
)

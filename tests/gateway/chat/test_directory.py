"""One place turns what a request asks for into an agent."""

from __future__ import annotations

import pytest

from gateway.core.request.identity import IdentityRules, identify
from gateway.errors import BadRequest, UnknownModel
from gateway.run.directory import Directory, make_unknown_agent_error
from gateway.settings import BlockSettings, MemorySettings, ProfileSettings, Settings

HELPER = ProfileSettings(
    "helper",
    model="m",
    system="Be brief.",
    memory_tools=True,
    rebuild="always",
    blocks=(
        BlockSettings("human"),
        BlockSettings("house", shared=True),
        BlockSettings("board", shared=True, writable=True),
    ),
)


def find(settings: Settings, model: str = "m", agent: str | None = None) -> object:
    headers = [] if agent is None else [(b"x-mnemogate-agent", agent.encode())]
    identity = identify(headers, {"model": model, "user": "ann"}, IdentityRules("default"), "default")
    found = Directory(settings).find_requested_spec(identity)
    if found is None:
        raise make_unknown_agent_error(identity, model)
    return found


def test_a_profile_of_the_settings_is_an_agent() -> None:
    directory = Directory(Settings(profiles=(HELPER,)))
    (spec,) = directory.specs
    assert (spec.name, spec.system, spec.model) == ("helper", "Be brief.", "m")
    assert (spec.offers_tools, spec.rebuilds_section, spec.history, spec.summarises) == (
        True,
        True,
        "full",
        True,
    )
    assert [block.label for block in spec.own_blocks] == ["human"]
    assert [(block.label, block.read_only) for block in spec.shared_blocks] == [
        ("house", True),
        ("board", False),
    ]
    assert find(Settings(profiles=(HELPER,)), agent="helper") == spec
    assert find(Settings(profiles=(HELPER,)), model="agent/helper") == spec


@pytest.mark.parametrize("profiles", [(), (ProfileSettings("default"),)])
def test_the_defaults_decide_what_a_profile_leaves_open(profiles: tuple[ProfileSettings, ...]) -> None:
    memory = MemorySettings(history="append", compaction="truncate")
    spec = find(Settings(memory=memory, profiles=profiles))
    assert (spec.name, spec.history, spec.summarises) == ("default", "append", False)  # type: ignore[attr-defined]


def test_an_agent_that_is_not_there_is_refused_in_the_words_of_who_asks() -> None:
    with pytest.raises(BadRequest) as by_header:
        find(Settings(), agent="nobody")
    assert by_header.value.param == "x-mnemogate-agent"
    with pytest.raises(UnknownModel) as by_model:
        find(Settings(), model="agent/nobody")
    assert by_model.value.param == "model"


@pytest.mark.parametrize("model", ["agent/", "agent/ ", "agent/nobody"])
def test_a_model_that_names_no_agent_does_not_exist(model: str) -> None:
    with pytest.raises(UnknownModel) as refused:
        find(Settings(profiles=(HELPER,)), model=model)
    assert refused.value.param == "model"

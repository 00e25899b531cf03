"""The tools that read the files of attached folders: a search by words and meaning, and one by a pattern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from msgspec import Struct

from gateway.agents.tools.children import ChildLimitExceeded, Children
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.run.tools import searches
from gateway.run.tools.toolbox import ToolAnswer
from storage.definition_records import DefinitionKind
from storage.errors import StoreError
from storage.file_records import StoredFile
from storage.listing import PassageFilter
from storage.records import Agent, Passage, Vector
from storage.sql.store import Store

# The most seconds of one call of `grep_files`. This value and the limits below are not measured.
_GREP_S = 1.0
# The most characters of a pattern, and of a glob.
_MAX_PATTERN_CHARS = 300
# The most matches that one call shows.
_MAX_MATCHES = 20
# The most characters of a line that are shown.
_MAX_LINE_CHARS = 300
_NO_FILES = "No file is attached to this agent."
SEARCH_UNAVAILABLE = "Error: files cannot be searched at the moment."
_GREP_STOPPED = (
    "the search took longer than a second, or too much memory. Use a simpler pattern, or name fewer files by "
    "`include`."
)


class _Match(Struct, frozen=True):
    """A line that a pattern matches."""

    # The names of the folder and the file: `<folder>/<file>`.
    path: str
    # The number of the line, from 1 on.
    number: int
    # All lines of the file.
    lines: Sequence[str]


class FileTools(Struct, frozen=True):
    """The tools of one agent."""

    # The store with the files of folders.
    store: Store
    # The agent whose attached folders are searched.
    agent: Agent
    # The processes that match patterns.
    children: Children
    # Makes the vector of a query; None: files are searched by words alone.
    embed_query: EmbedQuery | None = None

    async def run(self, name: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        """Runs a call. arguments: the arguments, which fit the schema of the tool."""
        try:
            folders = await self._load_folder_names()
            if name == "semantic_search_files":
                return await self._search(folders, str(arguments["query"]), arguments.get("limit") or 5)
            return await self._grep(folders, arguments)
        except StoreError:
            return ToolAnswer.failed(SEARCH_UNAVAILABLE)

    async def _load_folder_names(self) -> dict[int, str]:
        """Returns the names of the attached folders by their rows."""
        if not self.agent.is_stored:
            return {}
        folder_rows = await self.store.attached.load_targets(self.agent.id, DefinitionKind.FOLDER)
        folders = await self.store.definitions.find_by_memories(DefinitionKind.FOLDER, folder_rows)
        return {row: folders[row].name for row in folder_rows if row in folders}

    async def _search(self, folders: Mapping[int, str], query: str, limit: int) -> ToolAnswer:
        """Searches all folders, and shows the best passages of each in turn."""
        if not folders:
            return ToolAnswer(_NO_FILES)
        embed = self.embed_query
        vector = None if embed is None else await embed([*folders], query, searches.SEARCH_MS)
        hits, is_incomplete = await searches.search_all(
            [self._search_folder(row, query, limit, vector) for row in folders]
        )
        hits = hits[:limit]
        file_rows = sorted({hit.file for hit in hits if hit.file is not None})
        files = await self.store.files.load_by_rows(file_rows)
        lines = [
            f"- [{folders[file.memory_row]}/{file.name}] {hit.text.strip()}"
            for hit in hits
            if hit.file is not None and (file := files.get(hit.file)) is not None
        ]
        return searches.make_answer(lines, SEARCH_UNAVAILABLE, is_incomplete=is_incomplete)

    async def _search_folder(
        self, folder_row: int, query: str, limit: int, vector: Vector | None
    ) -> Sequence[Passage]:
        """Returns the passages of one folder that match a query, best first."""
        memory = await self.store.agents.find_by_id(folder_row)
        if memory is None:
            return []
        return await self.store.recall.search_passages(
            memory, query, PassageFilter(), limit=limit, deadline_ms=searches.SEARCH_MS, vector=vector
        )

    async def _grep(self, folders: Mapping[int, str], arguments: Mapping[str, Any]) -> ToolAnswer:
        """Shows the lines of the files that a pattern matches, from the match at `offset` on."""
        pattern, include = str(arguments["pattern"]), arguments.get("include")
        if not pattern or len(pattern) > _MAX_PATTERN_CHARS:
            return ToolAnswer.failed(f"Error: a pattern has 1 to {_MAX_PATTERN_CHARS} characters.")
        if include and len(str(include)) > _MAX_PATTERN_CHARS:
            # Python caches thousands of compiled globs, so a long one would take memory for long.
            return ToolAnswer.failed(f"Error: `include` has {_MAX_PATTERN_CHARS} characters at most.")
        files = {
            f"{folders[file.memory_row]}/{file.name}": file
            for file in await self.store.files.list_of_folders(list(folders))
        }
        included_files = {path: file for path, file in files.items() if _is_included(path, file, include)}
        if not included_files:
            return ToolAnswer(f"No file fits {include!r}." if files else _NO_FILES)
        offset = arguments.get("offset") or 0
        matches: list[_Match] = []
        is_incomplete = False
        try:
            max_count = offset + _MAX_MATCHES + 1
            pattern_error = await self._collect_matches(pattern, included_files, max_count, matches)
        except ChildLimitExceeded:
            pattern_error, is_incomplete = "", True
        if pattern_error:
            return ToolAnswer.failed(f"Error: this is no regular expression: {pattern_error}.")
        if is_incomplete and len(matches) <= offset:
            return ToolAnswer.failed(f"Error: {_GREP_STOPPED}")
        page = _render_page(matches, offset, arguments.get("context_lines"))
        return ToolAnswer(f"{page}\n[More lines may match: {_GREP_STOPPED}]" if is_incomplete else page)

    async def _collect_matches(
        self, pattern: str, files: Mapping[str, StoredFile], max_count: int, matches: list[_Match]
    ) -> str:
        """Finds the first lines that match a pattern. Returns the error of an invalid pattern; "" if it is valid.

        files: the files to search, by their paths.
        max_count: the largest number of matches.
        matches: the list to which the matches are added, even if the time ends before the last file.

        Raises: ChildLimitExceeded.
        """
        async with self.children.start("gateway.agents.tools.grep_child:find_lines", _GREP_S) as child:
            for path, file in files.items():
                text = await self.store.files.load_text(file)
                question = {"pattern": pattern, "text": text, "max_count": max_count - len(matches)}
                answer = await child.ask(question)
                if "pattern_error" in answer:
                    return str(answer["pattern_error"])
                lines = text.splitlines() if answer["line_numbers"] else ()
                matches += [_Match(path, number, lines) for number in answer["line_numbers"]]
                if len(matches) == max_count:
                    break
        return ""


def _is_included(path: str, file: StoredFile, glob: str | None) -> bool:
    """Returns whether a glob matches the path or the name of a file. glob: None or "": each file is included."""
    return not glob or any(fnmatch(name.lower(), glob.lower()) for name in (path, file.name))


def _render_page(matches: Sequence[_Match], offset: int, context_lines: int | None) -> str:
    """Returns a page of matches as the model reads it.

    offset: the number of matches before the page.
    context_lines: the number of lines to show before and after each match; None: one.
    """
    page = matches[offset : offset + _MAX_MATCHES]
    if not page:
        return "Nothing was found."
    context_lines = 1 if context_lines is None else context_lines
    text = "\n".join(line for match in page for line in _render_match(match, context_lines))
    notice = f"\n[There is more: the next begin at offset {offset + _MAX_MATCHES}.]"
    return text + (notice if len(matches) > offset + _MAX_MATCHES else "")


def _render_match(match: _Match, context_lines: int) -> Iterator[str]:
    """Yields a match as it is shown, with the lines before and after it."""
    yield f"{match.path}:{match.number}"
    first, last = max(1, match.number - context_lines), min(len(match.lines), match.number + context_lines)
    for number in range(first, last + 1):
        line = match.lines[number - 1]
        shown_line = line[:_MAX_LINE_CHARS] + (" …" if len(line) > _MAX_LINE_CHARS else "")
        yield f"{'>' if number == match.number else ' '} {number}: {shown_line}"

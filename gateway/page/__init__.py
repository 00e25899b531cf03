"""The page in a browser at `/ui`: look into memories, correct them, forget.

To add a screen (people_screens.py and its template are examples):

1. An operation in `gateway/run/admin` returns a frozen record (`memory_records.py`), a list a `ListPage`. It takes the
   visitor's `project` (None: all) and raises `UnknownId` for what is not in it, as `get_agent` does for a memory.
   Changes take `request.visitor.editor`, and note themselves in the audit (`store.audit.add`).
2. Name the operation in `PageOperations` (page_operations.py); `gateway/operations.py` makes it.
3. A module here has `make_screens(operations) -> list[Screen | Action]`; `page_routes.py` calls it, and `FLOORS` of
   `tests/test_rooms.py` lists the module. The path has parts (`m/{uid}/f/{seq:int}`), `query` and `form` are Structs
   (`ListQuery` for lists): the page checks them, and refuses what is unknown or mistyped with a 400 that names it.
4. A screen returns `View(record, "people.html", heading)`. Its JSON twin (`people.json`) is there by itself. Call
   `await request.note_read(uid)` where a memory is read.
5. The template extends `base.html` and fills `content`. Links are `url("m", uid, "b", label)`, texts of people go
   through the filters `words` and `paragraph` (text_filters.py), forms stand in `{% if may_write %}`. A screen of a
   memory (fact_screens.py is an example) takes its routes from `MemoryRoutes`, and returns
   `make_access(request).view(...)`.
   Its template extends `memory_base.html`, and has links `url(base, "f", seq)` and forms in
   `{% if access.may("correct") %}`. Macros (`_memory.html`) know these names where they are imported `with context`.
   about_me.py lists what a person with a link sees too, by the template `me_...`, which extends `me_base.html`.
6. An action returns `ActionResult(record, redirect_to)`: a page is redirected, a program gets the record. A form that
   is refused comes back as `View(..., error=error)`. Sessions, origins, content types and rights are checked before.
7. Tests (`tests/gateway/page`): `operator.py` has a gateway with an operator, for requests; `browser.py` has Chromium,
   where `check_screen` tries a screen at both widths, in both schemes, without script, with axe.
   `test_every_route.py` finds new screens by itself; it needs the fields of an action in `FIELDS`, and a list that is
   no memory's in `LISTS`.
"""

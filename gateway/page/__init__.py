"""The page in a browser at `/ui`: look into memories, mend them, forget.

To add a screen (people_screens.py and its template are examples):

1. An operation in `gateway/run/admin` returns a frozen record (`memory_records.py`). It takes the visitor's `project`
   (None: all) and raises `UnknownId` for what is not in it; changes take `request.visitor.editor`.
2. Name the operation in `PageOperations` (page_operations.py); `gateway/operations.py` makes it.
3. A module here has `screens(operations) -> list[Screen | Action]`; `page_routes.py` lists it. The path has parts
   (`m/{uid}/f/{seq:int}`), `query` and `form` are Structs (`ListQuery` for lists): the page checks them, and refuses
   what is unknown or mistyped with a 400 that names it.
4. A screen returns `View(record, "people.html", heading)`. Its JSON twin (`people.json`) is there by itself. Call
   `await request.note_read(uid)` where a memory is read.
5. The template extends `base.html` and fills `content`. Links are `url("m", uid, "b", label)`, texts of people
   `words(text)` and `paragraph(text)` of `_macros.html`, forms stand in `{% if may_write %}`.
   A screen of a memory returns `access_of(request).view(...)`: a person with a link sees it too, by the template
   `me_...`.
6. An action returns `ActionResult(record, redirect_to)`: a page is redirected, a program gets the record. A form that
   is refused comes back as `View(..., error=error)`. Sessions, origins, content types and rights are checked before.
7. Tests (`tests/gateway/page`): `operator.py` has a gateway with an operator, for requests; `browser.py` has Chromium,
   where `looks_right` tries a screen at both widths, in both schemes, without script, with axe.
"""

"""HTTP/1.1 to upstreams, without aiohttp's session: it opens connections, and no more.

The session makes a request, a response, a writer, timers and a task for each call; its pool and its parser are made
for all that a client may want. A call to a model wants little: its body is here as a whole and goes out behind its head
in one write, and a whole reply comes in one read. So a connection is kept by the object that reads from it, with the
parser (llhttp, behind httptools) that reads requests on the other side.
"""

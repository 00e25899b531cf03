-- Vectors of messages, passages and facts, where an embedder is configured.

-- A blob for each 64 numbers of an agent's order (storage/search/vectors.py knows the bytes). model: whose vectors they are;
-- others are not compared with one another. stamp: the agent's when the blob was written.
-- pad: a row's beginning lies in a page with others and moves with it, leaving copies; what is beyond about a thousand
-- bytes (sqlite.org/fileformat2.html, 1.6) lies in overflow pages of its own, which are erased when it gives them up.
CREATE TABLE vectors (
    agent INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    model TEXT NOT NULL,
    pad   BLOB NOT NULL,
    data  BLOB NOT NULL,
    PRIMARY KEY (agent, chunk)
) STRICT, WITHOUT ROWID;

-- How far an agent's order has been embedded. dimension: 0 while that is not known. stamp: rises with every change.
CREATE TABLE embedded (
    agent     INTEGER PRIMARY KEY,
    model     TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    stamp     INTEGER NOT NULL
) STRICT;

-- seen: the digest of the whole value of a block that a pending edit overwrites, as its model saw it.
ALTER TABLE block_ops ADD COLUMN seen INTEGER;

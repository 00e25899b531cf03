-- oldest: 6
-- A program that does not know that notes may be deflated must not read them.
COMMENT ON COLUMN exchanges.notes IS 'JSON, deflated (zlib) where that is shorter';

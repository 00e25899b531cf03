-- What a key may do. memory: the memory mode of its requests that ask for none; NULL: as the settings say.
-- opens: the one thing that it opens ('metrics'); NULL: everything.
ALTER TABLE keys ADD COLUMN memory TEXT;
ALTER TABLE keys ADD COLUMN opens TEXT;

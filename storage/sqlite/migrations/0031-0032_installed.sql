-- installed: the SHA-256 of the secret with which the settings have installed a key, whatever secret it was given since.
ALTER TABLE keys ADD COLUMN installed BLOB;

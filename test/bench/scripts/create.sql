\set n random(1, :rows)
SELECT id FROM apikey_create('bench key', 'bench user', 'bench') \gset

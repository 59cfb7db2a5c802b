\set n random(1, :rows)
INSERT INTO apikeys.keys (name, user_id, plan_id, start, digest) VALUES ('bench key', 'bench user', 'bench', 'bench_abcd', sha256(uuid_send(gen_random_uuid()))) RETURNING id \gset

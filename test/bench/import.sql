-- Import the keys in one statement, and tell how long it took. Variables: those
-- of setup.sql.
SELECT clock_timestamp() AS began \gset
\if :all
INSERT INTO apikeys.keys (name, user_id, plan_id, start, digest)
SELECT k.next, 'user ' || k.n, 'bench', left(k.secret, 10), sha256(k.secret::bytea)
  FROM bench.keys k;
\else
INSERT INTO apikeys.keys (name, user_id, plan_id, start, digest)
SELECT coalesce(k.next, 'key ' || s.n), 'user ' || s.n, 'bench', left(s.secret, 10),
       sha256(s.secret::bytea)
  FROM bench.secrets s LEFT JOIN bench.keys k USING (n)
 WHERE s.n BETWEEN 1 AND :rows;
\endif
SELECT round(:rows / extract(epoch FROM clock_timestamp() - :'began')) AS imported_per_second \gset
\echo :imported_per_second

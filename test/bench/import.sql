-- Import keys from "first" to "last" in one statement, and print how many a
-- second. Variables: these two, and those of setup.sql.
SET client_min_messages = warning;
SET synchronous_commit = off;
SELECT clock_timestamp() AS began \gset
\if :all
INSERT INTO apikeys.keys (name, user_id, plan_id, start, digest)
SELECT k.next, 'user ' || k.n, 'bench', left(k.secret, 10), sha256(k.secret::bytea)
  FROM bench.keys k;
\else
INSERT INTO apikeys.keys (name, user_id, plan_id, start, digest, metadata)
SELECT coalesce(k.next, 'key ' || s.n), 'user ' || s.n, 'bench', left(s.secret, 10),
       sha256(s.secret::bytea),
       CASE WHEN s.n % (:rows / 100) = 1 THEN '{"tier": "gold"}'::jsonb ELSE '{}' END
  FROM bench.secrets s LEFT JOIN bench.keys k USING (n)
 WHERE s.n BETWEEN :first AND :last;
\endif
SELECT round((:last - :first + 1) / extract(epoch FROM clock_timestamp() - :'began'));

-- Evaluate an expression over bench.picks in one statement; print µs a call and
-- how many were made, of which one in two is measured. Variables: expression,
-- which must not be null.
SET jit = off;
SELECT count(:expression) AS warmed FROM bench.picks p \gset
SELECT clock_timestamp() AS began \gset
SELECT count(:expression) AS calls FROM bench.picks p \gset
SELECT round((extract(epoch FROM clock_timestamp() - :'began') * 1000000 / :calls)::numeric, 3),
       :warmed + :calls;

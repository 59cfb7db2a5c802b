-- Evaluate an expression over picks in one statement, after as many others that
-- make all warm but the rows picked; print µs a call and how many were made, of
-- which one in two is measured. Variables: expression, which must not be null.
SET jit = off;
SELECT count(:expression) AS warmed FROM bench.other_picks p \gset
SELECT clock_timestamp() AS began \gset
SELECT count(:expression) AS calls FROM bench.picks p \gset
SELECT round((extract(epoch FROM clock_timestamp() - :'began') * 1000000 / :calls)::numeric, 3),
       :warmed + :calls;

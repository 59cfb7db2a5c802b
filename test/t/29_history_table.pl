# What a DBA makes of the table of history holds for the worker, too: columns,
# partitions, constraints and triggers.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'main',
	# A new worker makes partitions; so does each sweep.
	'apikeys.sweep_interval' => '1d',
	'apikeys.worker_idle_timeout' => '1d');
$node->start;
install($node);
my ($id, $secret) = issue($node, 'postgres', q('key'));

sub sql
{
	my ($statements) = @_;
	return $node->safe_psql('postgres', $statements);
}

# One statement: at most one request more is in an earlier flush.
sub request
{
	my (@endpoints) = @_;
	my $list = join ', ', map { "('$_')" } @endpoints;
	return sql(qq(
		SELECT count(*) FROM (VALUES $list) e (endpoint),
			apikey_verify('$secret', e.endpoint, 'POST', '192.0.2.7', 2, tags => '{a,b}') v WHERE v.valid));
}

sub has
{
	my ($rows, $where) = @_;
	return $node->poll_query_until('postgres',
		"SELECT count(*) = $rows FROM apikeys.requests WHERE endpoint $where");
}

# ----- As it is -----

is(verify_times($node, 'postgres', $secret, 2500), 2500, 'more requests than are inserted at once');
ok(flushed($node, 'postgres', 2500), 'are in the history');
is(sql(qq(SET enable_seqscan = off; SET enable_bitmapscan = off;
	SELECT count(*) FROM apikeys.requests WHERE key_id = '$id')), 2500, 'and in its index');
is(sql(q(SELECT count(*) FROM apikeys.requests_default)), 0, 'in the partition of their day');

# ----- Other columns, and a partition that has them in another order -----

# Of yesterday and three days more, instead of those that are there.
sub replace_partition
{
	my ($statements) = @_;
	sql(qq(
		DO \$\$
		DECLARE p regclass;
		BEGIN
			FOR p IN SELECT inhrelid FROM pg_inherits
			          WHERE inhparent = 'apikeys.requests'::regclass
			            AND inhrelid <> 'apikeys.requests_default'::regclass
			LOOP
				EXECUTE format('ALTER TABLE apikeys.requests DETACH PARTITION %s', p);
			END LOOP;
		END \$\$;
		$statements;
		DO \$\$
		BEGIN
			EXECUTE format('ALTER TABLE apikeys.requests ATTACH PARTITION other FOR VALUES FROM (%L) TO (%L)',
				now() - interval '1 day', now() + interval '3 days');
		END \$\$));
	return;
}

sql(q(
	ALTER TABLE apikeys.requests ADD COLUMN gone int DEFAULT 7, ADD COLUMN region text NOT NULL DEFAULT 'north',
		ADD COLUMN doubled bigint GENERATED ALWAYS AS (cost * 2) STORED, ADD COLUMN free int;
	ALTER TABLE apikeys.requests DROP COLUMN gone));
request('/more');
ok(has(1, "= '/more'"), 'a request of a table with more columns');
my $whole = q(SELECT endpoint, method, status, code, ip_address, cost, tags, region, doubled, free IS NULL
	FROM apikeys.requests WHERE endpoint);
is(sql("$whole = '/more'"), '/more|POST|allowed|VALID|192.0.2.7|2|{a,b}|north|4|t',
	'which have their defaults');

replace_partition(q(
	CREATE TABLE other (region text NOT NULL DEFAULT 'not this', free int, tags text[],
		doubled bigint GENERATED ALWAYS AS (cost * 2) STORED, cost bigint NOT NULL, code text NOT NULL,
		gone int, endpoint text, ip_address inet, key_id uuid NOT NULL, status text NOT NULL,
		method text, "timestamp" timestamptz NOT NULL);
	ALTER TABLE other DROP COLUMN gone;
	CREATE INDEX other_idx ON other (key_id, "timestamp")));
request('/other');
ok(has(1, "= '/other'"), 'a request of a partition with another order of columns');
is(sql("$whole = '/other'"), '/other|POST|allowed|VALID|192.0.2.7|2|{a,b}|north|4|t', 'which is right');
is(sql("SELECT endpoint FROM apikey_requests('$id', 1) LIMIT 1"), '/other', 'and found by its index');

# ----- Triggers that are to fire always -----

sql(q(
	CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, what text);
	CREATE FUNCTION before_row() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NEW.endpoint = '/unwanted' THEN RETURN NULL; END IF;
		NEW.region := (SELECT count(*) FROM public.other WHERE endpoint ~ '^/T');
		NEW.endpoint := upper(NEW.endpoint);
		RETURN NEW;
	END $$;
	CREATE FUNCTION after_row() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO public.log (what) VALUES (NEW.endpoint); RETURN NULL; END $$;
	CREATE FUNCTION after_statement() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO public.log (what) SELECT 'statement: ' || r.endpoint || ' ' || r.doubled FROM new_rows r; RETURN NULL; END $$;
	CREATE TRIGGER before_row BEFORE INSERT ON other FOR EACH ROW EXECUTE FUNCTION before_row();
	CREATE TRIGGER after_row AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION after_row();
	CREATE TRIGGER after_statement AFTER INSERT ON apikeys.requests REFERENCING NEW TABLE AS new_rows
		FOR EACH STATEMENT EXECUTE FUNCTION after_statement()));
request('/quiet');
ok(has(1, "= '/quiet'"), 'usual triggers do not fire');
is(sql('SELECT count(*) FROM log'), 0, '... none of them');
sql(q(
	ALTER TABLE other ENABLE ALWAYS TRIGGER before_row;
	ALTER TABLE other ENABLE ALWAYS TRIGGER after_row;
	ALTER TABLE apikeys.requests ENABLE ALWAYS TRIGGER after_statement));
request('/t1', '/unwanted', '/t2', '/t3');
ok(has(3, "~ '^/T'"), 'a BEFORE trigger changes rows, and leaves out some');
is(sql(q(SELECT string_agg(region, ' ' ORDER BY region) FROM other WHERE endpoint ~ '^/T')), '0 1 2',
	'it sees each row before the next');
is(sql(q(SELECT string_agg(what, ' ' ORDER BY what) FROM log WHERE what !~ 'statement')), '/T1 /T2 /T3', 'an AFTER trigger');
is(sql(q(SELECT string_agg(what, ', ' ORDER BY what) FROM log WHERE what ~ 'statement')),
	'statement: /T1 4, statement: /T2 4, statement: /T3 4', 'and one for the statement, with the rows');
sql(q(DROP TRIGGER before_row ON other));
request('/u1', '/u2');
ok(has(2, "~ '^/u'"), 'rows without the BEFORE trigger');
is(sql(q(SELECT count(*) FROM log WHERE what ~ '/u')), 4, 'fire the others');
sql(q(DROP TRIGGER after_row ON other; DROP TRIGGER after_statement ON apikeys.requests));

# One that moves a row to where it does not belong.
sub failures
{
	return sql(q(SELECT value FROM apikeys.stats WHERE name = 'flush_failures'));
}

sub fails_until
{
	my ($statement, $name) = @_;
	my $before = failures();
	request('/moved', '/stays');
	ok($node->poll_query_until('postgres',
			qq(SELECT value > $before FROM apikeys.stats WHERE name = 'flush_failures')),
		"$name is a failure of the worker");
	is(sql(q(SELECT count(*) FROM apikeys.requests WHERE endpoint ~ '/(moved|stays)')), 0, '... all or none');
	sql($statement);
	ok(has(2, "~ '/(moved|stays)'"), '... and the requests are kept until it is gone');
	sql(q(DELETE FROM apikeys.requests WHERE endpoint ~ '/(moved|stays)'));
	return;
}

sql(q(
	CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NEW.endpoint = '/moved' THEN NEW.timestamp := '2001-01-01'; END IF;
		RETURN NEW;
	END $$;
	CREATE TRIGGER move BEFORE INSERT ON other FOR EACH ROW EXECUTE FUNCTION move();
	ALTER TABLE other ENABLE ALWAYS TRIGGER move));
fails_until('DROP TRIGGER move ON other', 'a trigger that moves a row out of its partition');

# ----- What the table does not let in -----

sql(q(ALTER TABLE other ADD CONSTRAINT not_bad CHECK (endpoint <> '/moved') NOT VALID));
fails_until('ALTER TABLE other DROP CONSTRAINT not_bad', 'a constraint that refuses a row');

# ----- Columns of other types -----

sql(q(
	CREATE DOMAIN slashed AS text CHECK (value ~ '^/');
	ALTER TABLE apikeys.requests DROP COLUMN doubled;
	ALTER TABLE apikeys.requests ALTER COLUMN cost TYPE numeric(10, 2), ALTER COLUMN ip_address TYPE text,
		ALTER COLUMN code TYPE varchar(25), ALTER COLUMN endpoint TYPE slashed USING endpoint::slashed,
		ADD COLUMN doubled numeric GENERATED ALWAYS AS (cost * 2) STORED));
request('/types');
ok(has(1, "= '/types'"), 'a request of a table with other types');
is(sql("$whole = '/types'"), '/types|POST|allowed|VALID|192.0.2.7/32|2.00|{a,b}|north|4.00|t', 'which is converted');
sql(q(ALTER TABLE apikeys.requests ALTER COLUMN method TYPE varchar(3)
	USING NULL));
fails_until('ALTER TABLE apikeys.requests ALTER COLUMN method TYPE text', 'a type that is too narrow');
sql(q(ALTER TABLE apikeys.requests ALTER COLUMN tags TYPE int USING NULL));
fails_until('ALTER TABLE apikeys.requests ALTER COLUMN tags TYPE text[] USING NULL', 'a type to which there is no conversion');

# ----- Many partitions, by turns; a default that looks at the table -----

sql(q(
	CREATE SEQUENCE ticks;
	CREATE FUNCTION seen() RETURNS text LANGUAGE plpgsql VOLATILE AS
	$$ BEGIN RETURN (SELECT count(*) FROM apikeys.requests WHERE endpoint = '/many'); END $$;
	ALTER TABLE apikeys.requests ALTER COLUMN region SET DEFAULT public.seen(),
		ADD COLUMN tick bigint DEFAULT nextval('public.ticks');
	DROP TABLE other));
replace_partition(q(
	CREATE TABLE other (LIKE apikeys.requests INCLUDING GENERATED) PARTITION BY HASH (key_id);
	CREATE TABLE other_0 PARTITION OF other FOR VALUES WITH (MODULUS 3, REMAINDER 0);
	CREATE TABLE other_1 PARTITION OF other FOR VALUES WITH (MODULUS 3, REMAINDER 1);
	CREATE TABLE other_2 PARTITION OF other FOR VALUES WITH (MODULUS 3, REMAINDER 2);
	CREATE INDEX ON other (key_id, "timestamp")));
is(sql(q(
	CREATE TEMP TABLE made AS SELECT k.id, k.api_key FROM generate_series(1, 100) n, LATERAL apikey_create('many ' || n) k;
	SELECT count(*) FROM generate_series(1, 3) n, made m, apikey_verify(m.api_key, '/many', cost => n) v WHERE v.valid)), 300,
	'requests of 100 keys');
ok(has(300, "= '/many'"), 'are in the history');
is(sql(q(SELECT count(DISTINCT tableoid), count(DISTINCT key_id), count(DISTINCT tick), min(region::int), max(region::int),
	count(DISTINCT region) FROM apikeys.requests WHERE endpoint = '/many')),
	'3|100|300|0|299|300', 'each in its partition, and seen by the next');
sql(q(ALTER TABLE apikeys.requests ALTER COLUMN region SET DEFAULT 'north', DROP COLUMN tick));
sql(q(
	ALTER TABLE apikeys.requests DROP COLUMN doubled;
	ALTER TABLE apikeys.requests ALTER COLUMN cost TYPE bigint, ALTER COLUMN ip_address TYPE inet USING NULL,
		ALTER COLUMN code TYPE text, ALTER COLUMN endpoint TYPE text, ADD COLUMN doubled bigint GENERATED ALWAYS AS (cost * 2) STORED));

# ----- A partition elsewhere -----

SKIP:
{
	skip 'there is no postgres_fdw', 4
	  unless sql(q(SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'));
	my ($host, $port) = ($node->host, $node->port);
	sql(q(CREATE DATABASE elsewhere));
	$node->safe_psql('elsewhere', q(
		CREATE TABLE history (endpoint text, cost bigint, "timestamp" timestamptz, key_id uuid,
			method text, status text, code text, ip_address inet, tags text[], region text, doubled bigint GENERATED ALWAYS AS (cost * 2) STORED, free int)));
	sql(q(DROP TABLE other));
	replace_partition(qq(
		CREATE EXTENSION postgres_fdw;
		CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw
			OPTIONS (host '$host', port '$port', dbname 'elsewhere', batch_size '10');
		CREATE USER MAPPING FOR CURRENT_USER SERVER elsewhere;
		CREATE FOREIGN TABLE other (endpoint text, cost bigint NOT NULL, "timestamp" timestamptz NOT NULL, key_id uuid NOT NULL,
			method text, status text NOT NULL, code text NOT NULL, ip_address inet, tags text[],
			region text NOT NULL, doubled bigint GENERATED ALWAYS AS (cost * 2) STORED, free int)
			SERVER elsewhere OPTIONS (table_name 'history')));
	is(request('/f1', '/f2'), 2, 'requests while the partition is a foreign table');
	ok(has(2, "~ '^/f'"), 'are in the history');
	is(sql("$whole = '/f2'"), '/f2|POST|allowed|VALID|192.0.2.7|2|{a,b}|north|4|t', 'as they were');
	is($node->safe_psql('elsewhere', 'SELECT count(*) FROM history'), 2, 'which is elsewhere');
}

$node->stop;
done_testing();

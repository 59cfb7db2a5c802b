# A history buffer that fills faster than the worker empties it: who fills it
# slows down before it is full.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use Test::More;

plan skip_all => 'switches are counted in /proc, which is for Linux' if $^O ne 'linux';

my $node = new_server(
	'main',
	'apikeys.history_buffer' => '1MB',
	'apikeys.flush_interval' => '60s',
	'apikeys.history_wait_timeout' => '60s');
$node->start;
install($node);

# A pause is a voluntary switch to another process. Seven records of 1,000 bytes
# fill a chunk, of which there are 128.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION switches() RETURNS int LANGUAGE sql AS $$
		SELECT substring(pg_read_file('/proc/self/status')
		                 FROM '\nvoluntary_ctxt_switches:\s*(\d+)')::int
	$$;
	CREATE FUNCTION pauses(secret text, chunks int) RETURNS int LANGUAGE plpgsql AS $$
	DECLARE
		before int;
	BEGIN
		PERFORM apikey_verify(secret);
		before := switches();
		IF (SELECT count(*) FROM generate_series(1, 7 * chunks)
		     WHERE (apikey_verify(secret, repeat('/x', 500))).code <> 'NOT_FOUND') <> 7 * chunks THEN
			RAISE 'not all are known';
		END IF;
		RETURN switches() - before;
	END $$));
my (undef, $secret) = issue($node, 'postgres', q('key'));
my (undef, $disabled) = issue($node, 'postgres', q('disabled', enabled => false));

sub set_to
{
	my ($name, $value) = @_;
	$node->append_conf('postgresql.conf', "$name = $value");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT current_setting('$name') = '$value'")
	  or die "$name is not $value";
}

sub pauses
{
	my ($secret, $chunks) = @_;
	return $node->safe_psql('postgres', "SELECT pauses('$secret', $chunks)");
}

# The worker stands still, with nothing locked. Who waits for nothing pauses for nothing.
is(verify($node, 'postgres', $secret), 'VALID', 'the meter is open');
ok( $node->poll_query_until(
		'postgres',
		q(SELECT state = 'idle' FROM pg_stat_activity WHERE backend_type = 'apikeys worker')),
	'the worker waits for its interval');
my $worker = $node->safe_psql('postgres',
	q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'apikeys worker'));
kill 'STOP', $worker or die "worker: $!";

cmp_ok(pauses($secret, 60), '<', 10, 'the first half of the buffer fills at full speed');
pauses($secret, 5);
cmp_ok(pauses($secret, 15), '>=', 13, 'beyond it, who takes a chunk pauses');
cmp_ok(pauses($disabled, 15), '>=', 13, 'also who is refused');
set_to('apikeys.history_overflow', 'drop');
cmp_ok(pauses($secret, 10), '<', 5, 'not where records may be dropped');
set_to('apikeys.history_overflow', 'wait');
set_to('apikeys.history_wait_timeout', '0');
cmp_ok(pauses($secret, 10), '<', 5, 'nor where nobody shall wait');

kill 'CONT', $worker or die "worker: $!";
is( $node->safe_psql('postgres', q(
	SELECT value FROM apikeys.stats WHERE name = 'history_dropped')),
	'0', 'there was room for all of it');

# What has come is written by the quarter of the buffer, so that there is room soon.
set_to('apikeys.flush_interval', '100ms');
my $rows = 1 + 6 + 7 * (60 + 5 + 15 + 15 + 10 + 10);
ok(flushed($node, 'postgres', $rows), 'all of it is written');
is( $node->safe_psql('postgres', q(
	SELECT max(n) BETWEEN 7 * 30 AND 7 * 32 + 10, count(*) >= 4
	  FROM (SELECT count(*) FROM apikeys.requests GROUP BY xmin::text) t (n))),
	't|t', 'in several transactions, none of which is long');

$node->stop;
done_testing();

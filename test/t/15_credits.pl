# Credits: a balance is what was granted minus what was consumed, whoever
# grants and consumes at the same time; a refill comes once, whatever crashes.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 32;
my $node = new_server(
	'main',
	'max_connections' => $clients + 20,
	'apikeys.meter_timeout' => '60s',
	'apikeys.history_wait_timeout' => '60s');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# The balance, and whether it is the ledger's sum less what was consumed.
sub audit
{
	my ($table, $id) = @_;
	my ($subject, $column) =
	  $table eq 'keys' ? ('key', 'id') : ('user', 'subject_id');
	return sql(
		qq(
		SELECT b.balance, b.balance =
		       (SELECT sum(l.amount) FROM apikeys.ledger l
		         WHERE l.subject_id = h.$column AND l.kind = 'credits')
		       - coalesce((SELECT u.current_usage FROM apikeys.live_usage u
		         WHERE u.subject_id = h.$column AND u.period = 'credits'), 0)
		  FROM apikeys.$table h,
		       LATERAL apikeys.balance(h.$column, '$subject', h.credits,
		           h.refill_amount, h.refill_every, h.refill_day, h.refill_since) AS b (balance)
		 WHERE h.id = '$id'));
}

# ----- Many consume what two keys share, while it is granted and taken -----

sql(q(SELECT apikey_user_create('alice'); SELECT apikey_user_credits('alice', 'set', 3000)));
my (undef, $one) = issue($node, 'postgres', q('one', 'alice'));
my (undef, $two) = issue($node, 'postgres', q('two', 'alice'));
my @scripts = map { "$dir/$_.sql" } 1 .. $clients;
foreach my $client (1 .. $clients - 2)
{
	foreach my $n (1 .. 60)
	{
		my $secret = ($client + $n) % 2 ? $one : $two;
		my $cost = 1 + ($client * 5 + $n) % 4;
		append_to_file($scripts[ $client - 1 ],
			"SELECT code, $cost FROM apikey_verify('$secret', cost => $cost);\n");
	}
}
foreach my $client ($clients - 1, $clients)
{
	append_to_file($scripts[ $client - 1 ],
		"SELECT apikey_user_credits('alice', 'add', 20);\n"
		  . "SELECT CASE WHEN credits >= 7 THEN apikey_user_credits('alice', 'add', 3) END FROM apikey_user_get('alice');\n"
		  . "BEGIN; SELECT apikey_user_credits('alice', 'add', 100000); ROLLBACK;\n")
	  foreach 1 .. 15;
}

# A grant that is not committed is nobody else's.
race($node, 'credits', @scripts);
my $spent = 0;
foreach my $script (@scripts)
{
	$spent += $_ foreach slurp_file("$script.out") =~ /^VALID\|(\d+)$/mg;
}
my ($balance, $is_sum) = split /\|/, audit('users', 'alice');
is($is_sum, 't', 'the balance is the sum of the ledger less what was consumed');
is( sql(q(
		SELECT sum(l.amount) FROM apikeys.ledger l JOIN apikeys.users u USING (subject_id)
		 WHERE u.id = 'alice' AND l.kind = 'credits')) - $spent,
	$balance, "which is what clients were told ($spent)");
cmp_ok($balance, '>=', 0, 'nobody was given what was not granted');
my $rest = verify_times($node, 'postgres', $one, $balance + 10);
is($rest, $balance, 'in the end exactly what was granted is consumed');
is(audit('users', 'alice'), '0|t', 'and the balance is zero');

# ----- A refill comes once -----

# A refill is due that was so half an hour ago.
sub make_due
{
	my ($id) = @_;
	sql(
		qq(
		SET session_replication_role = replica;
		UPDATE apikeys.keys SET refill_since = clock_timestamp() - interval '90 minutes'
		 WHERE id = '$id'));
	return;
}

sub refills
{
	my ($id) = @_;
	return sql(
		qq(SELECT coalesce(string_agg(amount::text, ' ' ORDER BY id), '') FROM apikeys.ledger
		    WHERE subject_id = '$id' AND operation = 'refill'));
}

my $arguments = q(credits => 100, refill_amount => 10, refill_every => '1 hour');
my ($id, $secret) = issue($node, 'postgres', "'refilled', $arguments");
is(verify_times($node, 'postgres', $secret, 95), 95, 'most is consumed');
make_due($id);
like(audit('keys', $id), qr/^10\|/, 'a refill that is due shows');
is(verify_times($node, 'postgres', $secret, 20), 10, 'it can be consumed');
is(refills($id), '5', 'it is in the ledger before it can be');
$node->stop('immediate');
ok(start_again($node), 'a crash');
is(verify($node, 'postgres', $secret),
	'USAGE_EXCEEDED', 'does not bring it again');
ok(until_true(sub { audit('keys', $id) eq '0|t' }),
	'nor do the balance and the ledger say so');
is(refills($id), '5', 'which has one refill');

# A refill that finds the balance high enough counts as come.
my ($full_id, $full) = issue($node, 'postgres', "'full', $arguments");
is(verify($node, 'postgres', $full), 'VALID', 'one is consumed');
make_due($full_id);
is(verify_times($node, 'postgres', $full, 90), 90, 'and then most');
is(refills($full_id), '', 'a refill adds nothing to a higher balance');
$node->stop('immediate');
ok(start_again($node), 'a crash');
cmp_ok(verify_times($node, 'postgres', $full, 20),
	'<=', 9, 'does not have it add something later');
ok(until_true(sub { audit('keys', $full_id) =~ /\|t$/ }),
	'the ledger tells what a crash cost');

# A refill that cannot be made durable admits nothing.
my ($gated_id, $gated) = issue($node, 'postgres', "'gated', $arguments");
is(verify_times($node, 'postgres', $gated, 100), 100, 'all is consumed');
make_due($gated_id);
my $blocker = $node->background_psql('postgres');
$blocker->query_safe('BEGIN; LOCK TABLE apikeys.usage IN SHARE MODE');
my ($status, $told) = $node->psql(
	'postgres', "SET statement_timeout = '1s'; SELECT code FROM apikey_verify('$gated')");
isnt($status, 0, 'a refill that cannot be written admits nothing');
unlike($told, qr/VALID/, 'not even once');
($status) = $node->psql('postgres',
	"SET statement_timeout = '1s'; SELECT apikey_credits('$gated_id', 'add', 0)");
isnt($status, 0, 'nor is it told to who grants more');
$blocker->query_safe('COMMIT');
$blocker->quit;
is(verify($node, 'postgres', $gated), 'VALID', 'and then it does');

# What is given back after a refill: the balance is as if it had never been
# charged, when the refill would have added less.
foreach my $case ([ 'subscription', 10, 8, 9 ], [ 'bought', 100, 98, 99 ], [ 'plenty', 100, 50, 99 ])
{
	my ($name, $credits, $cost, $left) = @$case;
	my ($late_id, $late) = issue($node, 'postgres',
		"'$name', credits => $credits, refill_amount => 10, refill_every => '1 hour'");
	my $session = $node->background_psql('postgres');
	$session->query_safe(
		"BEGIN; SELECT apikey_verify('$late', cost => $cost, on_abort => 'refund')");
	make_due($late_id);
	is(verify($node, 'postgres', $late), 'VALID', "a refill comes meanwhile ($name)");
	ok( $node->poll_query_until(
			'postgres',
			"SELECT charged = ceiling AND refilled_at IS NOT NULL FROM apikeys.usage WHERE subject_id = '$late_id' AND period = 'credits'"),
		'all of it is written');
	$session->query_safe('ROLLBACK');
	$session->quit;
	is((split /\|/, audit('keys', $late_id))[0], $left, "what is given back late ($name)");
	ok( $node->poll_query_until(
			'postgres',
			"SELECT current_usage = 1 FROM apikeys.usage WHERE subject_id = '$late_id' AND period = 'credits'"),
		'is not billed');
	is(audit('keys', $late_id), "$left|t", 'and the ledger agrees');
}

# ----- A change that comes while an older state is being written -----

# Writes of one row are held, and let go one by one.
sql(q(
	CREATE TABLE held (id uuid, period text, let_go int);
	CREATE SEQUENCE writes;
	CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE
	    n bigint;
	BEGIN
	    IF (NEW.subject_id, NEW.period) IN (SELECT id, period FROM public.held) THEN
	        n := nextval('public.writes');
	        WHILE (SELECT let_go < n FROM public.held) LOOP
	            PERFORM pg_sleep(0.02);
	        END LOOP;
	    END IF;
	    RETURN NEW;
	END $$;
	CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON apikeys.usage FOR EACH ROW EXECUTE FUNCTION hold();
	ALTER TABLE apikeys.usage ENABLE ALWAYS TRIGGER hold;
	SELECT apikey_plan_create('Writing', 100, 'year', plan_id => 'writing')));
my ($writing_id, $writing) = issue($node, 'postgres', "'writing', plan_id => 'writing', $arguments");
is(verify_times($node, 'postgres', $writing, 100), 100, 'all is consumed');
ok( $node->poll_query_until(
		'postgres', "SELECT bool_and(charged = 100 AND ceiling = 100 OR period <> 'credits') FROM apikeys.usage WHERE subject_id = '$writing_id'"),
	'and written');
sql("SELECT apikey_usage_adjust('$writing_id', -50); SELECT apikey_credits('$writing_id', 'add', 5)");

sub in_background
{
	my ($call) = @_;
	return IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "SELECT 'held' FROM $call" ],
		'<', \undef, '>', \my $out, '2>&1');
}

sub waiting
{
	my ($function) = @_;
	return qq(SELECT count(*) FROM pg_stat_activity
		WHERE query LIKE 'SELECT ''held'' FROM $function%' AND state = 'active' AND wait_event_type = 'Extension');
}

# What is called while a row is written that does not have it yet waits for the
# next write.
sub waits_for_next_write
{
	my ($period, $call, $prepare) = @_;
	my ($function) = $call =~ /^(\w+)/;
	my $others = $function eq 'apikey_verify' ? 1 : 0;
	sql("ALTER SEQUENCE writes RESTART; DELETE FROM held; INSERT INTO held VALUES ('$writing_id', '$period', 0)");
	my @runs = (in_background("apikey_verify('$writing')"));
	ok($node->poll_query_until('postgres', 'SELECT is_called FROM writes'), "a write is under way ($function)");
	$prepare->();
	push @runs, in_background($call);
	ok($node->poll_query_until('postgres', 'SELECT (' . waiting($function) . ') = ' . ($others + 1)), 'a change comes meanwhile');
	sql('UPDATE held SET let_go = 1');
	ok($node->poll_query_until('postgres', 'SELECT last_value = 2 FROM writes'), 'the next write is under way');
	ok($node->poll_query_until('postgres', 'SELECT (' . waiting($function) . ') = ' . ($others + 1)), 'which the change waits for');
	sql('UPDATE held SET let_go = 1000000');
	$_->finish foreach @runs;
	return;
}

waits_for_next_write('credits', "apikey_verify('$writing')", sub { make_due($writing_id) });
waits_for_next_write('year', "apikey_usage_adjust('$writing_id', 7)", sub { });
sql('DROP TRIGGER hold ON apikeys.usage');

# ----- A clean restart and an eviction from memory change nothing -----

my ($again_id, $again) = issue($node, 'postgres', "'again', $arguments");
is(verify_times($node, 'postgres', $again, 95), 95, 'most is consumed');
make_due($again_id);
is(verify($node, 'postgres', $again), 'VALID', 'a refill comes');
my $held = sql("SELECT reservation_id FROM apikey_reserve('$again', 4)");
my $before = sql('SELECT id, credits FROM apikeys.key_objects ORDER BY id');
$node->restart;
is(sql('SELECT id, credits FROM apikeys.key_objects ORDER BY id'),
	$before, 'a restart keeps balances');
is(sql("SELECT credits FROM apikey_settle('$held', 0)"), '9',
	'and does not mix up an earlier refill with a later one');

# ----- A ceiling that is lowered by a write that fails -----

# What a session may charge without asking is not lost in a crash once it is
# left alone, ten intervals later.
sql(q(ALTER SYSTEM SET apikeys.flush_interval = '500ms'; SELECT pg_reload_conf()));
my ($ahead_id, $ahead) = issue($node, 'postgres', q('ahead', credits => 6400));
my $ahead_row = "FROM apikeys.usage WHERE subject_id = '$ahead_id' AND period = 'credits'";
is(verify_times($node, 'postgres', $ahead, 60), 60, 'some are consumed');
ok($node->poll_query_until('postgres', "SELECT charged + 50 < ceiling $ahead_row"),
	'more may be');
my $failures = q(SELECT value FROM apikeys.stats WHERE name = 'flush_failures');
my $failed = sql($failures);
my $usage_lock = $node->background_psql('postgres');
$usage_lock->query_safe('BEGIN; LOCK TABLE apikeys.usage IN SHARE MODE');
is(sql("SELECT charged + 50 < ceiling $ahead_row"), 't', 'as the row says');
ok($node->poll_query_until('postgres', "SELECT ($failures) > $failed"),
	'it cannot be written that nobody does');
$usage_lock->query_safe('COMMIT');
$usage_lock->quit;
ok($node->poll_query_until('postgres', "SELECT charged = 60 AND ceiling = 60 $ahead_row"),
	'and then it is');
$node->stop('immediate');
ok(start_again($node), 'a crash');
is(sql("SELECT credits FROM apikeys.key_objects WHERE id = '$ahead_id'"),
	'6340', 'costs nothing');
sql('ALTER SYSTEM RESET apikeys.flush_interval');

# ----- What is written at the next interval alone -----

$node->append_conf('postgresql.conf', "apikeys.flush_interval = '1min'");
$node->restart;

# The ceiling of what is undone was lower.
sql(q(SELECT apikey_plan_create('Plan', 100, 'year', plan_id => 'plan')));
my ($adjusted_id, $adjusted) = issue($node, 'postgres', q('adjusted', plan_id => 'plan'));
is(verify_times($node, 'postgres', $adjusted, 110), 100, 'a quota is used up');
my $adjusting = $node->background_psql('postgres');
$adjusting->query_safe("BEGIN; SELECT apikey_usage_adjust('$adjusted_id', -50)");
is( sql("SELECT charged FROM apikeys.usage WHERE subject_id = '$adjusted_id'"),
	'50', 'an adjustment is durable');
$adjusting->query_safe('ROLLBACK');
my $undone_at = time;
ok( $node->poll_query_until(
		'postgres', "SELECT charged = 100 FROM apikeys.usage WHERE subject_id = '$adjusted_id'"),
	'and so is its end');
cmp_ok(time - $undone_at, '<', 20, 'which does not wait for the interval');

# Nor does the end of one that has raised the count: a crash would leave it
# billed, and no row of the ledger tells why.
$adjusting->query_safe("BEGIN; SELECT apikey_usage_adjust('$adjusted_id', 50)");
is( sql("SELECT current_usage FROM apikeys.usage WHERE subject_id = '$adjusted_id'"),
	'150', 'an adjustment to above the limit is durable');
$adjusting->query_safe('ROLLBACK');
$undone_at = time;
ok( $node->poll_query_until(
		'postgres', "SELECT current_usage = 100 FROM apikeys.usage WHERE subject_id = '$adjusted_id'"),
	'and so is its end');
cmp_ok(time - $undone_at, '<', 20, 'at once');
$adjusting->quit;

# Slack is for what is not paid for.
sql(q(ALTER SYSTEM SET apikeys.crash_slack = 1000; SELECT pg_reload_conf()));
ok($node->poll_query_until('postgres', q(SELECT current_setting('apikeys.crash_slack') = '1000')), 'some slack');
my (undef, $exact) = issue($node, 'postgres', q('exact', credits => 10));
$blocker = $node->background_psql('postgres');
$blocker->query_safe('BEGIN; LOCK TABLE apikeys.usage IN SHARE MODE');
(undef, $told) = $node->psql(
	'postgres', "SET statement_timeout = '1s'; SELECT code FROM apikey_verify('$exact')");
unlike($told, qr/VALID/, 'is none for credits');
$blocker->query_safe('COMMIT');
$blocker->quit;
sql(q(ALTER SYSTEM RESET apikeys.crash_slack; SELECT pg_reload_conf()));

# What a crash costs is in the ledger, though nobody verifies.
my ($idle_id, $idle) = issue($node, 'postgres', q('idle', credits => 6400));
is(verify($node, 'postgres', $idle), 'VALID', 'credits are used');
$node->stop('immediate');
$node->append_conf('postgresql.conf', "apikeys.flush_interval = '200ms'");
ok(start_again($node), 'a crash');
ok(until_true(sub { audit('keys', $idle_id) =~ /\|t$/ }), 'is in the ledger');
cmp_ok((split /\|/, audit('keys', $idle_id))[0], '<', 6399, 'and has cost something');
is( sql("SELECT string_agg(operation, ' ' ORDER BY id) FROM apikeys.ledger WHERE subject_id = '$idle_id'"),
	'grant correction', 'once');
is( sql("SELECT current_usage FROM apikeys.live_usage WHERE subject_id = '$idle_id' AND period = 'credits'") <= 1,
	1, 'but is not billed');
is(verify($node, 'postgres', $idle), 'VALID', 'the rest can be used');
like(audit('keys', $idle_id), qr/\|t$/, 'and the sum still holds');

$node->stop;
done_testing();

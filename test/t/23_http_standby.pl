# Requests through PostgREST to a standby: what is unlimited passes, a limit
# cannot be decided and says so.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use HttpTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

tool('complete');
my $primary = new_server('primary', 'wal_level' => 'replica', 'max_wal_senders' => 5);
$primary->start;
install($primary);
$primary->safe_psql('postgres',
	slurp_file("$FindBin::RealBin/../http/tenant.sql") =~ s/^\\.*//mgr);
$primary->safe_psql('postgres',
	q(INSERT INTO api.notes (owner, body) VALUES ('alice', 'hers');
	  UPDATE apikeys.apis SET http_role = 'web_tenant';
	  INSERT INTO apikeys.apis (id, http_role) VALUES ('default', 'web_tenant')));
my ($id, $free) = issue($primary, 'postgres', q('free', 'alice'));
my ($limited_id, $limited) = issue($primary, 'postgres', q('limited', plan_id => 'tenant'));

$primary->safe_psql('postgres',
	q(CREATE ROLE web_viewer;
	  GRANT web_viewer TO authenticator;
	  SELECT apikey_grant('web_viewer', 'viewer'), apikey_grant('web_viewer', 'verifier')));
$primary->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'b', has_streaming => 1);
$standby->start;

my ($url) = start_postgrest($standby, 'db-channel-enabled' => 'false',
	'db-pre-request' => 'public.apikey_authenticate');
my $answer = ask("$url/notes?select=body", '-H', "X-Api-Key: $free");
is("$answer->{status} $answer->{body}", '200 [{"body":"hers"}]', 'a key without a limit');
$answer = ask("$url/notes", '-H', "X-Api-Key: $limited");
is($answer->{status}, 503, 'a limited one') or diag($answer->{all});
is(json($answer)->{code}, '25006', '... and why');
is(ask("$url/notes", '-H', 'X-Api-Key: junk')->{status}, 401, 'none');

my ($manage) = start_postgrest($standby, 'db-channel-enabled' => 'false',
	'db-schemas' => 'apikeys_http', 'db-anon-role' => 'web_viewer');
is(ask("$manage/rpc/$_")->{status}, 200, "GET $_")
  foreach 'apikey_list', 'apikey_count', "apikey_get?id=$id", "apikey_usage?id=$id", 'apikey_dashboard';
is(ask("$manage/rpc/apikey_check", '-H', "X-Api-Key: $_->[1]")->{status}, $_->[0], 'GET apikey_check')
  foreach [ 200, $free ], [ 503, $limited ], [ 401, 'junk' ];
$answer = ask("$manage/rpc/apikey_verify", '-H', 'Content-Type: application/json', '-d', qq({"key": "$free"}));
is("$answer->{status} " . json($answer)->{code}, '400 0A000', 'PostgREST makes no POST there');

stop_services();
$standby->stop;
$primary->stop;
unlike(slurp_file($standby->logfile), qr/keeps no counts/, 'refusals are not logged');
done_testing();

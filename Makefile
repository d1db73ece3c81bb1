# Carillon: every target is documented with ## and variables with #:. The work is done by dev/.

.DEFAULT_GOAL := help
DEV := bin/dev
TEST_PYTHON := .dev/venv-test/bin/python

help: ## this list
	@awk 'BEGIN {FS = ":.*## "; print "make <target>\n"} /^[a-z-]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' Makefile
	@awk 'BEGIN {FS = "#: "; print "\nvariables (in the environment, or make dev NAME=value)\n"} /^#: / {print "  " $$2}' Makefile

dev: ## set up everything and start the stack; run again, it changes nothing
	@$(DEV) dev

demo: ## a real Ansible run, live on the page
	@$(DEV) demo

observe: ## Prometheus and Alertmanager beside the stack, with alerts: docs/how-to/watch-it.md
	@$(DEV) observe

watch: ## events in the terminal, as they happen (EVENTS="jobs:status_changed job_events:42")
	@$(DEV) watch $(EVENTS)

down: ## stop the stack; data and secrets stay
	@$(DEV) down

logs: ## follow the logs (SERVICE=daphne: of one service)
	@$(DEV) logs $(SERVICE)

shell: ## a shell in a container (SERVICE=uwsgi)
	@$(DEV) shell $(SERVICE)

token: ## print a new admin token
	@$(DEV) token

clean: ## stop the stack and remove its data, secrets and private environments
	@$(DEV) clean

test: ## everything: lint, unit, simulation, packages, integration, infra, security, chaos, browser, on a stack of its own
	@$(DEV) test $(PART)

test-unit: ## the unit tests alone: no stack, some five minutes
	@$(DEV) test-unit

test-clean: ## remove what a cut-off `make test` left behind
	@$(DEV) test-clean

lint: ## code, shell scripts, Dockerfiles, and the files of nginx, supervisord, uwsgi and the roles
	@$(DEV) lint

docs: ## the documentation as a site, in .dev/docs; a link that leads nowhere fails it
	@$(DEV) docs

bench-sockets: $(TEST_PYTHON) ## measure events to sockets beside Channels' consumers and Socket.IO (an hour, on a quiet machine); writes docs/reference
	@rm -f .dev-bench/sockets.jsonl
	@$(TEST_PYTHON) benchmarks/sockets.py
	@$(TEST_PYTHON) benchmarks/sockets.py --report

bench-stack: $(TEST_PYTHON) ## measure latency, rates, 5000 clients and their return on the stack of `make dev` (minutes, on a quiet machine)
	@rm -f .dev-bench/latency.jsonl .dev-bench/emits.jsonl .dev-bench/stack_sockets.jsonl
	@export CARILLON_STACK_ENV=$${CARILLON_STATE:-.dev}/env CARILLON_STACK_PROJECT=$${CARILLON_PROJECT:-carillon}; \
	    $(TEST_PYTHON) benchmarks/latency.py && $(TEST_PYTHON) benchmarks/emits.py && \
	    $(TEST_PYTHON) benchmarks/stack_sockets.py --sockets 5000
	@$(TEST_PYTHON) benchmarks/sockets.py --report

simulate: $(TEST_PYTHON) ## run seeds of the simulation, e.g. SEEDS=0-9999 SECONDS=600; one that fails tells its story
	@PYTHONPATH=src PYTHONHASHSEED=0 $(TEST_PYTHON) -m tests.simulation --seeds $(or $(SEEDS),0-1999) \
	    --seconds $(or $(SECONDS),120) --jobs $$(nproc)

chaos: $(TEST_PYTHON) ## the whole chaos matrix, against the stack of `make dev` (it is killed, cut and filled: minutes); or SEEDS=20 composed schedules on three brokers
	@export CARILLON_STACK_ENV=$${CARILLON_STATE:-.dev}/env CARILLON_STACK_PROJECT=$${CARILLON_PROJECT:-carillon}; \
	$(if $(SEEDS),$(TEST_PYTHON) -m tests.chaos compose --seeds $(SEEDS) --seed-from $(or $(SEED_FROM),0),\
	    CARILLON_CHAOS_WHOLE=1 CARILLON_CHAOS_REPORT=.dev/chaos.jsonl CARILLON_STATE_EXAMPLES=50 \
	    $(TEST_PYTHON) -m pytest -q tests/chaos tests/integration/tower/test_state.py)

new: ## a repository of your own beside this checkout, which runs it (SITE=../mysite): docs/how-to/own-repository.md
	@$(DEV) new $(or $(SITE),--help) $(if $(CARILLON_VERSION),--carillon $(CARILLON_VERSION))

production: ## production in containers: supervisord in one of them (ports 50080, 50443)
	@$(DEV) production

production-down: ## stop it; data and secrets stay
	@$(DEV) production-down

production-clean: ## stop it and remove its data and secrets; backups stay
	@$(DEV) production-clean

production-backup: ## its database and secrets, in .dev-production/backups
	@$(DEV) production-backup

production-restore: ## the database of a backup (FROM=.dev-production/backups/<time>) in place of the one that runs
	@$(DEV) production-restore "$(FROM)"

production-prune: ## delete what was kept for long enough: docs/how-to/retention.md
	@$(DEV) production-prune

production-upgrade: ## the checkout's release in place of the one that runs
	@$(DEV) production-upgrade

production-rollback: ## back to the release that ran when the last upgrade began
	@$(DEV) production-rollback

production-rotate: ## new passwords of database and broker, a new key
	@$(DEV) production-rotate

production-refresh: ## the same release on images made anew, with the distribution's security updates
	@$(DEV) production-refresh

quadlets: ## the same for one host with Podman and systemd, and no Docker: its units, in .dev-quadlets
	@$(DEV) quadlets

cluster: ## the same with three brokers and two application containers, a stack of its own
	@$(DEV) cluster

cluster-down: ## stop it; data and secrets stay
	@$(DEV) cluster-down

cluster-clean: ## stop it and remove its data and secrets
	@$(DEV) cluster-clean

bundle: ## one archive to install from where there is no package index
	@$(DEV) bundle

release: ## the signed artifacts of this commit in dist/<version>/, with the program that verifies them (CARILLON_RELEASE_KEY)
	@$(DEV) release

test-production: ## a real host from nothing by Ansible, and the production container, proved (half an hour)
	@$(DEV) test-production $(SUITES)

test-production-full: ## that, and Ubuntu, a cluster of hosts, ACME, the bundle, a repository of a team's own, Podman, every command of the pages of Operate, an upgrade from an older release (two hours: too long for CI)
	@$(DEV) test-production --full $(SUITES)

test-production-clean: ## remove what a cut-off `make test-production` left behind
	@$(DEV) test-production-clean

bench-layer: $(TEST_PYTHON) ## measure the channel layer beside its peers (minutes, on a quiet machine); writes docs/reference
	@$(TEST_PYTHON) benchmarks/layer.py

test-long: $(TEST_PYTHON) ## the channel layer's soak (ten minutes), the cluster that loses its leader, all of Autobahn's cases, a repository of a team's own, an app that exists, the images of a release
	@CARILLON_LONG=1 $(TEST_PYTHON) -m pytest tests/integration/asgi_amqp/test_long.py tests/integration/sockets/test_autobahn.py \
	    tests/integration/own_repository tests/integration/outside_app tests/packages/test_release.py

test-million: $(TEST_PYTHON) ## a job of a million lines on the page of `make dev`: opened, scrolled, searched, followed (a quiet machine)
	@export CARILLON_LONG=1 CARILLON_STACK_ENV=$${CARILLON_STATE:-.dev}/env CARILLON_STACK_PROJECT=$${CARILLON_PROJECT:-carillon}; \
	    $(TEST_PYTHON) -m pytest -s tests/browser/test_million.py

mutation: $(TEST_PYTHON) ## change the pure cores in some 2000 ways and see that their unit tests notice (long, on a quiet machine)
	@$(TEST_PYTHON) -m tests.mutation $(CORES)

$(TEST_PYTHON):
	@echo "run make test-unit first: it makes the environment $@ of the tests"; exit 1

lock: ## write requirements/*.txt anew from requirements/*.in, and the locks of tests/packages (needs uv)
	@for name in app tools dev test production-test; do \
	    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url \
	        requirements/$$name.in $$([ $$name != app ] || echo src/asgi_amqp/pyproject.toml) \
	        --output-file requirements/$$name.txt || exit 1; done
	@tests/packages/locks/make

outdated: $(TEST_PYTHON) ## what is older in the locks than at the package index
	@$(TEST_PYTHON) -m pip list --outdated --disable-pip-version-check

#: CARILLON_HTTP_PORT          plain HTTP (8013)
#: CARILLON_HTTPS_PORT         HTTPS (8043)
#: CARILLON_MANAGEMENT_PORT    RabbitMQ's pages (15672), on 127.0.0.1
#: CARILLON_AMQP_PORT          RabbitMQ (5672), on 127.0.0.1
#: CARILLON_PROMETHEUS_PORT    make observe: Prometheus (9090), on 127.0.0.1
#: CARILLON_ALERTMANAGER_PORT  make observe: Alertmanager (9093), on 127.0.0.1
#: CARILLON_LISTEN             address of the first two (127.0.0.1; 0.0.0.0: the whole network may come)
#: CARILLON_ALLOWED_HOSTS      names and addresses that the application answers to (this machine's own)
#: CARILLON_CERTIFICATE        make production: your certificate, PEM, the server's first (one for localhost)
#: CARILLON_CERTIFICATE_KEY    … and its key
#: CARILLON_SUBNET             make quadlets: addresses of nginx's network (10.89.43.0/24)
#: CARILLON_BUNDLE_FOR         make bundle: Python and machine of the hosts (3.13-x86_64: Debian 13)
#: CARILLON_PROJECT            name of the stack (carillon)
#: CARILLON_STATE              where its secrets, certificates and logs lie (.dev)
#: CARILLON_RELEASE_IMAGES     make release: no, to leave the images out where no engine is
#: CARILLON_RELEASE_KEY        make release: the maintainers' secret key (minisign), its path
#: SITE                        make new: the folder to make; its last part is the name of your app
#: CARILLON_VERSION            make new: the line that names Carillon (this checkout's commit)
#: EVENTS                      make watch: these events alone (jobs:status_changed job_events:42)
#: SERVICE                     make logs, make shell: of this service (all; uwsgi)
#: FROM                        make production-restore: the backup, .dev-production/backups/<time>
#: SEEDS                       make simulate: these seeds (0-1999); make chaos: so many composed schedules
#: SECONDS                     make simulate: no longer than this (120)
#: CARILLON_LONG               make test: 1 on a quiet machine: what takes minutes too, and attacks held to twice the calm
#: PART                        make test: prepare (installs and builds), code (may run beside others) or alone; all without it
#: SUITES                      make test-production[-full]: these suites alone (ansible-lint, host, container, hosts, ...)
#: SEED_FROM                   make chaos SEEDS=20: the first of them (0)
#: CORES                       make mutation: these alone (outbox, lanes, mailboxes, bindings, acks; relay, tail, log, window, cursor, …)
#: CA_BUNDLE                   CA bundle that downloads need (the machine's own); builds get it as a secret

# Variables given on make's command line reach the tool by its environment.
export
.PHONY: help dev demo observe watch down logs shell token clean test test-unit test-clean lint docs bench-sockets bench-stack simulate chaos new production production-down production-clean production-backup production-restore production-prune production-upgrade production-rollback production-rotate production-refresh quadlets cluster cluster-down cluster-clean bundle release test-production test-production-full test-production-clean bench-layer test-long test-million mutation lock outdated

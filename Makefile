# Carillon: every target is documented with ## and variables with #:. The work is done by dev/.

.DEFAULT_GOAL := help
DEV := bin/dev

help: ## this list
	@awk 'BEGIN {FS = ":.*## "; print "make <target>\n"} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@awk 'BEGIN {FS = "#: "; print "\nvariables (in the environment, or make dev NAME=value)\n"} /^#: / {print "  " $$2}' Makefile

dev: ## set up everything and start the stack; run again, it changes nothing
	@$(DEV) dev

demo: ## a real Ansible run, live on the page
	@$(DEV) demo

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

test: ## everything: lint, unit, integration, infra, browser, on a stack of its own
	@$(DEV) test

test-unit: ## the unit tests alone: no container, seconds
	@$(DEV) test-unit

test-clean: ## remove what a cut-off `make test` left behind
	@$(DEV) test-clean

lint: ## ruff, mypy, yamllint
	@$(DEV) lint

lock: ## write requirements/*.txt anew from requirements/*.in (needs uv)
	@for name in app tools dev test; do \
	    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	        requirements/$$name.in --output-file requirements/$$name.txt || exit 1; done

#: CARILLON_HTTP_PORT        plain HTTP (8013)
#: CARILLON_HTTPS_PORT       HTTPS (8043)
#: CARILLON_MANAGEMENT_PORT  RabbitMQ's pages (15672), on 127.0.0.1
#: CARILLON_AMQP_PORT        RabbitMQ (5672), on 127.0.0.1
#: CARILLON_LISTEN           address of the first two (127.0.0.1; 0.0.0.0: the whole network may come)
#: CARILLON_PROJECT          name of the stack (carillon)
#: CARILLON_STATE            where its secrets, certificates and logs lie (.dev)
#: CA_BUNDLE                 CA bundle that downloads need (the machine's own); builds get it as a secret

# Variables given on make's command line reach the tool by its environment.
export
.PHONY: help dev demo down logs shell token clean test test-unit test-clean lint lock

#!/bin/sh
# Deploys a model of deployment/models and waits until it serves. `deploy_model.sh --help` describes the options.
#
# Nothing is applied before everything has been checked: arguments, kubectl, the cluster, the namespace, objects and
# permissions (by a dry run on the server), and the claims, Secrets and ConfigMaps that the pods need.
set -eu

DONE=0 NOT_SERVING=1 WRONG_USAGE=2 NO_CLUSTER=3 REFUSED=4
POLL_S=5 REQUEST_S=30 STATEFUL_SET_S=3600 MAX_FAILURES=6

usage() {
  cat <<'END'
usage: deploy_model.sh MODEL [--dry-run] [--image IMAGE] [--namespace NAME] [--context NAME] [--timeout SECONDS]

Deploys deployment/models/MODEL, and waits until it serves.

  --dry-run          show what would change, and change nothing
  --image IMAGE      with a tag or digest; default: the one in the manifests, tgis:VERSION
  --namespace NAME   default: the context's namespace
  --context NAME     default: kubectl's current context
  --timeout SECONDS  give up earlier than the Deployment's progressDeadlineSeconds (a StatefulSet has none: after an
                     hour); what was applied stays
  --help

Exit codes: 0 the model serves, or a dry run showed what would change; 1 it was applied, but does not serve; 2 wrong
arguments; 3 no usable kubectl, cluster or namespace, no permission, or a missing claim, Secret or ConfigMap; 4 the
cluster refused the objects. With 2 and 3, and with 4 unless the message says otherwise, nothing was applied.
END
}

fail() { # CODE SENTENCE
  printf 'deploy_model.sh: %s\n' "$2" >&2
  exit "$1"
}

drop_log_lines() { # kubectl's own, before its message: E0102 15:04:05.678 90 memcache.go:265] …
  sed '/^[EIW][0-9]\{4\} .*\.go:[0-9]*\]/d'
}

# Arguments

need_value() { # OPTION [VALUE]
  case ${2-} in
    '' | -*) fail $WRONG_USAGE "$1 needs a value." ;;
  esac
}

read_arguments() {
  model='' dry_run='' image='' namespace='' context='' timeout_s=''
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage && exit $DONE ;;
      --dry-run) dry_run=yes ;;
      --image) need_value "$@" && shift && image=$1 ;;
      --namespace | -n) need_value "$@" && shift && namespace=$1 ;;
      --context) need_value "$@" && shift && context=$1 ;;
      --timeout) need_value "$@" && shift && timeout_s=$1 ;;
      --image=* | --namespace=* | --context=* | --timeout=*)
        option=${1%%=*} value=${1#*=}
        shift
        set -- "$option" "$value" "$@"
        continue
        ;;
      -*) fail $WRONG_USAGE "There is no option $1; --help lists them." ;;
      *) [ -z "$model" ] || fail $WRONG_USAGE "One model is deployed at a time: $model or $1?" && model=$1 ;;
    esac
    shift
  done
  case $timeout_s in
    *[!0-9]* | 0*) fail $WRONG_USAGE "--timeout is a whole number of seconds, at least 1, not $timeout_s." ;;
  esac
  [ -z "$image" ] || check_image
}

# As `tgis manifest --image` does; in addition, no character may have a meaning in YAML.
check_image() {
  case $image in
    */ | *//* | *[!A-Za-z0-9._:/@-]*) fail $WRONG_USAGE "--image $image is not a name with a tag or digest, such as registry/tgis:0.1.0." ;;
    *@sha256:*[!0-9a-f]* | *@sha256:) fail $WRONG_USAGE "--image $image has a digest that is not hexadecimal." ;;
    *@sha256:*) ;;
    *:latest) fail $WRONG_USAGE "--image $image changes: name a version, so that all pods run the same." ;;
    *) case ${image##*/} in
      ?*:?*) ;;
      *) fail $WRONG_USAGE "--image $image has no tag: name a version, so that all pods run the same." ;;
    esac ;;
  esac
}

list_models() {
  for file in "$models"/*/kustomization.yaml; do
    [ -e "$file" ] && basename "$(dirname "$file")"
  done
}

check_model() {
  [ -n "$(list_models)" ] || fail $WRONG_USAGE "There are no models in $models."
  names=$(list_models | tr '\n' ' ' | sed 's/ $//; s/ /, /g')
  [ -n "$model" ] || fail $WRONG_USAGE "Name a model: $names."
  list_models | grep -Fqx -- "$model" || fail $WRONG_USAGE "There is no model $model. The models are $names."
}

# Tools and cluster

check_tools() {
  for tool in kubectl diff; do
    command -v "$tool" >/dev/null || fail $NO_CLUSTER "There is no $tool on the PATH: install it."
  done
  kustomize=$(kubectl version --client -o json 2>/dev/null | sed -n 's/.*"kustomizeVersion": *"v\([0-9]*\).*/\1/p') || :
  [ "${kustomize:-0}" -ge 5 ] ||
    fail $NO_CLUSTER "This kubectl is too old: kubectl 1.27 or newer, with kustomize 5, is needed."
}

choose_context() {
  if ! chosen=$(kubectl ${context:+--context "$context"} config view --minify -o 'jsonpath={.current-context} {..namespace}' 2>/dev/null); then
    contexts=$(kubectl config get-contexts -o name 2>&1 | tr '\n' ' ' | sed 's/ $//')
    case $contexts in
      '') fail $NO_CLUSTER "kubectl knows no cluster: set KUBECONFIG, or write ~/.kube/config." ;;
      error:*) fail $NO_CLUSTER "kubectl cannot read its configuration: $contexts" ;;
    esac
    [ -n "$context" ] ||
      fail $NO_CLUSTER "kubectl has no current context: name one with --context, or choose one with \`kubectl config use-context\`. It has: $contexts."
    fail $NO_CLUSTER "kubectl has no context $context; it has: $contexts."
  fi
  context=${chosen% *} default=${chosen##* }
  namespace=${namespace:-${default:-default}}
}

cluster() { # every call of kubectl that talks to the cluster
  kubectl --context "$context" --namespace "$namespace" --request-timeout "${REQUEST_S}s" "$@"
}

check_namespace() {
  problem=$(cluster get namespace "$namespace" -o name 2>&1 >/dev/null) && return
  case $problem in
    *NotFound*) fail $NO_CLUSTER "The cluster has no namespace $namespace: create it with \`kubectl create namespace $namespace\`, or name another with --namespace." ;;
    *Forbidden*) ;; # some clusters let nobody look at namespaces; the checks that matter follow
    *) fail $NO_CLUSTER "The cluster of context $context does not answer: $(printf '%s\n' "$problem" | drop_log_lines)" ;;
  esac
}

# Objects

# Sets $source to the directory that kubectl reads: the model's, or one that only changes its image.
choose_source() {
  source=$directory
  [ -n "$image" ] || return 0
  scratch=$(mktemp -d) || fail $NO_CLUSTER "There is no directory for temporary files: name one with TMPDIR."
  trap 'rm -rf "$scratch"' EXIT
  source=$(cd "$scratch" && pwd -P)
  last=${image##*/} tag='' digest=''
  case $last in *@*) digest=${image##*@} image=${image%@*} last=${last%@*} ;; esac
  case $last in *:*) tag=${last#*:} image=${image%:*} ;; esac
  up=$(printf '%s' "${source#/}" | sed 's#[^/][^/]*#..#g') # kustomize takes no absolute paths
  cat >"$source/kustomization.yaml" <<END
resources: ["$up$(cd "$directory" && pwd -P)"]
images: [{name: tgis, newName: "$image"${tag:+", newTag: \"$tag\""}${digest:+", digest: \"$digest\""}}]
END
}

# Of each object: its name, the name of a Secret that it makes (cert-manager's Certificate), and what its pods need.
# shellcheck disable=SC2016  # these are variables of Go's templates
OBJECTS='{{define "environment"}}{{range .env}}{{with .valueFrom}}
{{- with .secretKeyRef}}{{if not .optional}}needs Secret/{{.name}}{{"\n"}}{{end}}{{end}}
{{- with .configMapKeyRef}}{{if not .optional}}needs ConfigMap/{{.name}}{{"\n"}}{{end}}{{end}}{{end}}{{end}}
{{- range .envFrom}}
{{- with .secretRef}}{{if not .optional}}needs Secret/{{.name}}{{"\n"}}{{end}}{{end}}
{{- with .configMapRef}}{{if not .optional}}needs ConfigMap/{{.name}}{{"\n"}}{{end}}{{end}}{{end}}{{end}}
{{- range .items}}{{.kind}}/{{.metadata.name}}{{"\n"}}{{with .spec}}{{with .secretName}}Secret/{{.}}{{"\n"}}{{end}}
{{- $selector := .selector}}{{with .template}}{{with .spec}}
{{- with $selector}}selector {{range $key, $value := .matchLabels}}{{$key}}={{$value}},{{end}}{{"\n"}}{{end}}
{{- range .volumes}}
{{- with .persistentVolumeClaim}}needs PersistentVolumeClaim/{{.claimName}}{{"\n"}}{{end}}
{{- with .secret}}{{if not .optional}}needs Secret/{{.secretName}}{{"\n"}}{{end}}{{end}}
{{- with .configMap}}{{if not .optional}}needs ConfigMap/{{.name}}{{"\n"}}{{end}}{{end}}{{end}}
{{- range .initContainers}}{{template "environment" .}}{{end}}
{{- range .containers}}{{template "environment" .}}{{end}}{{end}}{{end}}{{end}}{{end}}'

# Sets $objects to what the template makes, $workload to deployment.apps/NAME or statefulset.apps/NAME, $selector to the
# labels of its pods, and $service to service/NAME: clients use the one with the workload's name, if there are several.
try_objects() {
  if ! objects=$(cluster apply -k "$source" --dry-run=server -o "go-template=$OBJECTS" 2>&1); then
    objects=$(printf '%s\n' "$objects" | drop_log_lines)
    case $objects in
      *'(Forbidden)'*' cannot '*' resource "'*) fail $NO_CLUSTER "Context $context lacks a permission in namespace $namespace: $objects" ;;
      *) fail $REFUSED "The cluster refuses the objects, and nothing was applied: $objects" ;;
    esac
  fi
  workload=$(find_objects '(Deployment|StatefulSet)' | head -n 1 | sed 's#^Dep#dep#; s#^StatefulS#statefuls#; s#/#.apps/#')
  selector=$(printf '%s\n' "$objects" | sed -n 's/^selector //p' | head -n 1)
  service=$(find_objects Service | grep -Fx "Service/${workload#*/}" || find_objects Service | head -n 1)
  [ -n "$workload" ] && [ -n "$service" ] ||
    fail $REFUSED "$directory needs a Deployment or StatefulSet, and a Service; nothing was applied."
  service=service/${service#*/}
}

find_objects() { # KIND, as a pattern
  printf '%s\n' "$objects" | grep -E "^$1/"
}

# Pods would wait for them forever. Objects that the folder itself creates are left out, and so are those that an
# operator creates from one of them: SealedSecret/NAME, ExternalSecret/NAME.
check_needs() {
  needed=$(printf '%s\n' "$objects" | sed -n 's/^needs //p' | sort -u | while read -r each; do
    printf '%s\n' "$objects" | grep -q "^[A-Za-z]*$each\$" || printf '%s ' "$each"
  done)
  [ -n "$needed" ] || return 0
  # Other errors are ignored: some clusters let nobody look at Secrets.
  # shellcheck disable=SC2086  # several names
  missing=$(cluster get $needed -o name 2>&1 >/dev/null | sed -n 's/.*(NotFound): \(.*\) not found$/\1/p' | tr '\n' ',' | sed 's/,$//; s/,/, /g')
  [ -z "$missing" ] ||
    fail $NO_CLUSTER "Namespace $namespace lacks what the pods need, and nothing was applied: $missing. docs/kubernetes.md shows how to create it."
}

# Sets $undo to the command that brings back the present pods. Without a revision, `rollout undo` goes back one too far
# if the pods do not change this time; `delete` would end an older version that serves.
remember_state() {
  case $workload in
    statefulset*) path='{.status.updateRevision}' ;;
    *) path='{.metadata.annotations.deployment\.kubernetes\.io/revision}' ;;
  esac
  earlier=$(cluster get "$workload" --ignore-not-found -o "jsonpath={.kind} $path") ||
    fail $NO_CLUSTER "The cluster does not say whether it has $workload, and nothing was applied."
  revision=${earlier#* }
  case $earlier in
    '') undo="delete -k $directory" && return ;;
    StatefulSet*) revision=$(cluster get controllerrevision "$revision" -o 'jsonpath={.revision}' 2>/dev/null) || revision='' ;;
  esac
  undo="rollout undo $workload${revision:+ --to-revision=$revision}"
}

undo_line() {
  printf 'To undo: kubectl --context %s -n %s %s' "$context" "$namespace" "$undo"
}

show_changes() {
  printf 'Changes for %s in namespace %s of context %s:\n' "$model" "$namespace" "$context"
  code=0
  cluster diff -k "$source" || code=$?
  case $code in
    0) echo "none" ;;
    1) ;;
    *) fail $REFUSED "The objects cannot be compared with those in the cluster; nothing was applied." ;;
  esac
}

apply_objects() {
  stage=applying
  cluster apply -k "$source" ||
    fail $REFUSED "Not all objects could be applied; those that were stay. $(undo_line)"
  stage=waiting
}

# Waiting

# One line for each pod of the newest revision: its name, whether it is ready, and why its containers or the pod wait.
# shellcheck disable=SC2016  # these are variables of Go's templates
PODS='{{range .items}}{{.metadata.name}} {{range .status.conditions}}{{if eq .type "Ready"}}{{.status}}{{end}}{{end}}
{{- range .status.initContainerStatuses}}{{with .state.waiting}} {{.reason}}{{end}}{{end}}
{{- range .status.containerStatuses}}{{with .state.waiting}} {{.reason}}{{end}}{{end}}
{{- range .status.conditions}}{{if and (eq .type "PodScheduled") (eq .status "False")}} {{.message}}{{end}}{{end}}{{"\n"}}{{end}}'
# Why a pod is not ready, for people.
# shellcheck disable=SC2016
WHY='{{define "ended"}}  it ended with exit code {{.exitCode}}{{with .reason}} ({{.}}){{end}}{{with .message}}: {{.}}{{end}}{{"\n"}}{{end}}
{{- define "container"}}
{{- with .state.waiting}}  {{$.name}} waits: {{.reason}}{{with .message}}: {{.}}{{end}}{{"\n"}}{{end}}
{{- with .state.terminated}}{{if .exitCode}}  {{$.name}} has failed{{"\n"}}{{template "ended" .}}{{end}}{{end}}
{{- if not .ready}}{{with .lastState.terminated}}{{template "ended" .}}{{end}}{{end}}{{end}}
{{- range .status.conditions}}{{if and (eq .type "PodScheduled") (eq .status "False")}}  it has no node: {{.message}}{{"\n"}}{{end}}{{end}}
{{- range .status.initContainerStatuses}}{{template "container" .}}{{end}}
{{- range .status.containerStatuses}}{{template "container" .}}{{end}}'
REVISIONS='{{range .items}}{{index .metadata.annotations "deployment.kubernetes.io/revision"}} {{index .metadata.labels "pod-template-hash"}}{{"\n"}}{{end}}'
NOT_CREATED='{{range .status.conditions}}{{if and (eq .type "ReplicaFailure") (eq .status "True")}}{{.message}}{{end}}{{end}}'

# Not those of older revisions, which may be failing: that may be why a new one is deployed.
list_new_pods() {
  case $workload in
    statefulset*) revision=controller-revision-hash=$(cluster get "$workload" -o 'jsonpath={.status.updateRevision}') ;;
    *) revision=pod-template-hash=$(cluster get replicasets -l "${selector%,}" -o "go-template=$REVISIONS" |
      sort -n | tail -n 1 | cut -d ' ' -f 2) ;;
  esac
  cluster get pods -l "$selector$revision" -o "go-template=$PODS"
}

# A pod in one of these states has failed more than once, or only a change to its specification helps.
find_hopeless() { # pods on stdin
  grep -m 1 -E ' (CrashLoopBackOff|ImagePullBackOff|InvalidImageName|ErrImageNeverPull|CreateContainerConfigError)' | cut -d ' ' -f 1
}

find_unready() { # pods on stdin
  grep -m 1 -v -E '^[^ ]+ True' | cut -d ' ' -f 1
}

explain_pod() { # POD
  printf 'Pod %s is not ready.\n' "$1"
  cluster get pod "$1" -o "go-template=$WHY" || :
  cluster get events --field-selector "involvedObject.name=$1,type=Warning" --sort-by=.lastTimestamp \
    -o 'go-template={{range .items}}  last warning: {{.message}}{{"\n"}}{{end}}' | tail -n 1
  printf '  more: kubectl --context %s -n %s describe pod %s; logs %s --all-containers\n' "$context" "$namespace" "$1" "$1"
}

give_up() { # SENTENCE POD
  if [ -n "$2" ]; then
    explain_pod "$2" >&2
  else
    reason=$(cluster get "$workload" -o "go-template=$NOT_CREATED" 2>/dev/null) || reason=''
    [ -z "$reason" ] || printf 'No pod can be created: %s\n' "$reason" >&2
  fi
  fail $NOT_SERVING "$1 It stays applied. $(undo_line)"
}

pause() {
  sleep $POLL_S &
  sleeper=$!
  wait $sleeper # unlike sleep itself, this ends at once when a signal arrives
  sleeper=''
}

wait_until_served() {
  started_s=$(date +%s) shown='' failures=0
  case $workload in statefulset*) timeout_s=${timeout_s:-$STATEFUL_SET_S} ;; esac
  while :; do
    line=$(cluster rollout status "$workload" --watch=false --timeout=20s 2>&1) && failures=0 || failures=$((failures + 1))
    line=$(printf '%s\n' "$line" | drop_log_lines)
    elapsed_s=$(($(date +%s) - started_s))
    case $line in
      *'successfully rolled out'* | *'rolling update complete'*) printf '%4d s  %s\n' "$elapsed_s" "$line" && return ;;
    esac
    pods=$(list_new_pods 2>/dev/null) || pods=''
    case $failures-$line in # kubectl fails when progressDeadlineSeconds is exceeded, or if the cluster does not answer
      0-*) ;;
      *'exceeded its progress deadline'*) give_up "$model does not serve: $line." "$(printf '%s\n' "$pods" | find_unready)" ;;
      $MAX_FAILURES-*) give_up "It is not known whether $model serves: $line." '' ;;
    esac
    hopeless=$(printf '%s\n' "$pods" | find_hopeless)
    [ -z "$hopeless" ] || give_up "$model does not start." "$hopeless"
    state=$line$pods
    if [ "$state" != "$shown" ]; then
      printf '%4d s  %s%s\n' "$elapsed_s" "$line" "$(printf '%s\n' "$pods" | sed -n 's/^[^ ]* [^ ]* \(.*\)/ (\1)/p' | head -n 1)"
      shown=$state
    fi
    if [ -n "$timeout_s" ] && [ "$elapsed_s" -ge "$timeout_s" ]; then
      give_up "$model does not serve after $elapsed_s s." "$(printf '%s\n' "$pods" | find_unready)"
    fi
    pause
  done
}

show_endpoint() {
  port=$(cluster get "$service" -o 'jsonpath={.spec.ports[?(@.name=="grpc")].port} {.spec.ports[?(@.name=="grpc")].appProtocol}')
  protocol=${port#* } port=${port% *} url=localhost
  name=${service#service/}
  case $protocol in https) url="grpcs://localhost" tls=" --ca ca.crt --tls-server-name $name.$namespace.svc" ;; *) tls='' ;; esac
  cat <<END
$model serves gRPC at $name.$namespace.svc:$port within the cluster. To try it from here:
  kubectl --context $context -n $namespace port-forward $service $port:$port
  tgis generate "Once upon a time" --url $url:$port$tls
END
}

stop() { # EXIT-CODE
  trap - INT TERM
  [ -z "$sleeper" ] || kill "$sleeper" 2>/dev/null || :
  echo >&2
  case $stage in
    checking) fail "$1" "Interrupted; nothing was applied." ;;
    applying) fail "$1" "Interrupted while objects were being applied: some may be. $(undo_line)" ;;
    *) fail "$1" "Interrupted. $model is applied, and the cluster goes on: kubectl --context $context -n $namespace rollout status $workload. $(undo_line)" ;;
  esac
}

models=$(dirname "$(readlink -f -- "$0")")/models
stage=checking sleeper=''
trap 'stop 130' INT
trap 'stop 143' TERM

read_arguments "$@"
check_model
directory=$models/$model
check_tools
choose_context
check_namespace
choose_source
try_objects
check_needs
remember_state
show_changes
[ -z "$dry_run" ] || exit $DONE
apply_objects
wait_until_served
show_endpoint

//go:build tools

// Package tools names the commands that the end-to-end tests build, so that go.mod pins them.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kubelet"
)

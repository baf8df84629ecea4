//go:build tools

// Package tools names the commands that the end-to-end tests build, so that go.mod pins them.
package tools

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
)

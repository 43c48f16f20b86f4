// The etcd server. A module of its own is needed because `go install` refuses etcd's, which has replace directives.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}

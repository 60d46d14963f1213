// Package widthcheck holds this module's own rule about the width of its prose,
// as a test over all its sources and Markdown. A tab counts as four columns, a
// character as one.
package widthcheck

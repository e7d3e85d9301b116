"""The promises, each as a rule over records: what broke it is an offence with the records that show it."""
